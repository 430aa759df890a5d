"""Doubles of the worker: an encoder without weights, a sink in memory. No I/O here."""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from PIL import Image

from clipfleet.contract.jobs import DecodeRoute, Precision
from clipfleet.contract.label_sets import short_hash
from clipfleet.contract.parts import PartCounts, PartIdentity
from clipfleet.errors import OutputConflictError, OutputUnavailableError
from clipfleet.outputs.folder import Confirm, unconditionally
from clipfleet_worker.encode.backends import PendingFeatures, ReadyFeatures
from clipfleet_worker.encode.backends.certificate import Certificate
from clipfleet_worker.pixel_spec import PixelSpec
from clipfleet_worker.sinks import OlderPart

COLOURS = {
    "black": (0, 0, 0), "white": (255, 255, 255), "red": (255, 0, 0), "green": (0, 255, 0),
    "blue": (0, 0, 255), "yellow": (255, 255, 0), "cyan": (0, 255, 255), "magenta": (255, 0, 255),
}  # fmt: skip


class FakeEncoder:
    """See `LoadedModel`: needs no weights, loads at once, and sees nothing but the mean colour.

    A prompt that contains the name of one of the `COLOURS` has the features of an image of that colour, so
    that `classify` with such labels gives sensible answers; any other prompt means a colour of its own.
    """

    def __init__(self, name: str = "fake", *, size: int = 8, embedding_dimension: int = 16) -> None:
        if embedding_dimension < 4:
            raise ValueError("a colour needs at least 4 dimensions")
        self.name = name
        self.fingerprint = short_hash([name, size, embedding_dimension])
        self.embedding_dimension = embedding_dimension
        self.logit_scale = 100.0
        self.precision = Precision.FP32
        self.device = "cpu"
        self.backend_name = "fake"
        self.batches_in_flight = 1
        self.certificate: Certificate | None = None
        self.pixel_spec = PixelSpec(
            width=size,
            height=size,
            interpolation="bicubic",
            resize_mode="squash",
            fill_colour=0,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            exact=lambda image: image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC),
        )
        noise = np.random.default_rng(0).standard_normal((embedding_dimension, 4))
        self._axes = np.linalg.qr(noise)[0].T  # (4, d), orthonormal: angles between colours stay as they are

    def fingerprint_for(self, route: DecodeRoute) -> str:
        return short_hash([self.fingerprint, route.value])

    def new_pixels(self, count: int) -> np.ndarray:
        return np.empty((count, self.pixel_spec.height, self.pixel_spec.width, 3), dtype=np.uint8)

    def begin_images(self, pixels: np.ndarray) -> PendingFeatures:
        """See `LoadedModel`; the features are there when it returns."""
        return ReadyFeatures(self.encode_images(pixels))

    def encode_images(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels uint8 (n, height, width, 3) -> features float32 (n, d), L2-normalised."""
        return self._features(pixels.mean(axis=(1, 2)))

    def encode_texts(self, prompts: list[str]) -> np.ndarray:
        """Prompts -> features float32 (n, d), L2-normalised."""
        return self._features(np.array([_colour_of(prompt) for prompt in prompts], dtype=np.float64))

    def _features(self, colours: np.ndarray) -> np.ndarray:
        # The fourth coordinate keeps mid-grey, which would be the origin, apart from all others.
        points = np.concatenate([colours - 127.5, np.full((len(colours), 1), 64.0)], axis=1) @ self._axes
        normalised: np.ndarray = points / np.linalg.norm(points, axis=1, keepdims=True)
        return normalised.astype(np.float32)


def _colour_of(prompt: str) -> tuple[int, int, int]:
    for word in re.findall(r"[a-z]+", prompt.lower()):
        if word in COLOURS:
            return COLOURS[word]
    red, green, blue = hashlib.sha256(prompt.encode()).digest()[:3]
    return red, green, blue


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """A part as it was written."""

    identity: PartIdentity
    rows: pa.Table
    counts: PartCounts


class MemorySink:
    """See `clipfleet_worker.sinks.Sink`; what was written is in `parts`, by chunk."""

    def __init__(self) -> None:
        self.parts: dict[int, MemoryPart] = {}
        self._lock = threading.Lock()

    def find(self, identity: PartIdentity) -> PartCounts | None:
        with self._lock:
            part = self._part(identity)
        return part.counts if part is not None and part.identity == identity else None

    def older(self, identity: PartIdentity) -> OlderPart | None:
        with self._lock:
            part = self._part(identity)
        if part is None or part.identity == identity:
            return None
        return OlderPart(part.rows, str(part.identity.generation))

    def write(
        self,
        identity: PartIdentity,
        rows: pa.Table,
        counts: PartCounts,
        *,
        over: OlderPart | None = None,
        token: str = "",
        confirm: Confirm = unconditionally,
    ) -> PartCounts:
        confirm()
        with self._lock:
            part = self._part(identity)
            if part is not None and part.identity == identity:
                return part.counts
            if (over and over.version) != (str(part.identity.generation) if part else None):
                raise OutputUnavailableError(f"chunk {identity.chunk_id} was written meanwhile")
            self.parts[identity.chunk_id] = MemoryPart(identity, rows, counts)
        return counts

    def _part(self, identity: PartIdentity) -> MemoryPart | None:
        part = self.parts.get(identity.chunk_id)
        if part is not None and part.identity.job_id != identity.job_id:
            raise OutputConflictError(f"chunk {identity.chunk_id} belongs to {part.identity}")
        if part is not None and part.identity.generation > identity.generation:
            raise OutputUnavailableError(f"chunk {identity.chunk_id} was retried meanwhile")
        return part
