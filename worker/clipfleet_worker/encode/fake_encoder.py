"""A double of a loaded model that needs no weights: features are mean colours. For trials and tests only."""

from __future__ import annotations

import hashlib
import re

import numpy as np
from PIL import Image

from clipfleet.contract.jobs import DecodeRoute, Exif, Precision
from clipfleet.contract.label_sets import short_hash
from clipfleet_worker.encode.backends import PendingFeatures, ReadyFeatures
from clipfleet_worker.encode.backends.certificate import Certificate
from clipfleet_worker.pixel_spec import PixelSpec

COLOURS = {
    "black": (0, 0, 0), "white": (255, 255, 255), "red": (255, 0, 0), "green": (0, 255, 0),
    "blue": (0, 0, 255), "yellow": (255, 255, 0), "cyan": (0, 255, 255), "magenta": (255, 0, 255),
}  # fmt: skip


class FakeEncoder:
    """See `LoadedModel`: needs no weights, loads at once, and encodes the mean colour only.

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

    def fingerprint_for(self, route: DecodeRoute, exif: Exif = Exif.IGNORE) -> str:
        return short_hash([self.fingerprint, route.value, *([] if exif is Exif.IGNORE else [f"exif {exif}"])])

    def has_made(self, fingerprint: str, route: DecodeRoute, exif: Exif) -> bool:
        """Whether rows with this fingerprint are of this encoder; it has one precision."""
        return fingerprint == self.fingerprint_for(route, exif)

    def new_pixels(self, count: int) -> np.ndarray:
        return np.empty((count, self.pixel_spec.height, self.pixel_spec.width, 3), dtype=np.uint8)

    def begin_images(self, pixels: np.ndarray) -> PendingFeatures:
        """Encode synchronously: the features are ready when it returns."""
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
