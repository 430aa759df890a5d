"""Evidence that a backend gives a model's vectors, and which way of running a whole batch is the fastest.

Canaries are seeded images and prompts whose features open_clip's own module has computed in fp32 on the CPU,
before a backend changed it. A way that does not give these features, or is no faster than another one, is not
used. Features that a backend has reproduced, and the verdict on a CPU's backend, are kept for later starts.
"""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

from clipfleet.contract.jobs import Precision
from clipfleet_worker.encode.backends import Backend, PendingFeatures, SeveralWays
from clipfleet_worker.encode.bisecting import FORWARD_ERRORS
from clipfleet_worker.encode.kept_arrays import forget, keep, recall
from clipfleet_worker.failures import first_line
from clipfleet_worker.pixel_spec import PixelSpec
from clipfleet_worker.process.device import cpu_name

if TYPE_CHECKING:
    import torch

PLAIN, GRAPH = "plain", "graph"

# Of any feature to that of fp32 on the CPU: the bars of tests/integration/test_fidelity.py.
LEAST_COSINE = {Precision.FP32: 0.9999, Precision.FP16: 0.997, Precision.BF16: 0.997}
_LEAST_GAIN = 1.05  # a way that gains less only adds risk
_TIMED_SECONDS, _TIMED_BATCHES = 1.0, 10  # at most; two batches in any case
PROMPTS = (
    "a photo of a cat", "two red bicycles", "the moon over the sea", "a page of a book", "a",
    "an old map", "people in the rain", "a drawing of a machine, made by hand, with notes in the margin",
)  # fmt: skip
_COUNT = len(PROMPTS)  # of the images, too


class Unfaithful(RuntimeError):  # noqa: N818 - a verdict
    """The plain pass is too far from fp32 on the CPU; the message says how far, in one line."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way of running a batch."""

    name: str
    worst_cosine: float = 0.0  # of a canary's features to the right ones
    per_second: float = 0.0  # images, fed as by the batcher; 0 if there is only one way
    refused: str = ""  # why it is not used


@dataclass(frozen=True, slots=True)
class Certificate:
    """The ways that were tried when a model was loaded."""

    batch: int  # images at a time
    ways: tuple[Way, ...]  # the plain one first

    @property
    def used(self) -> Way:
        """The fastest way that gives the right features."""
        return [way for way in self.ways if not way.refused][-1]

    def __str__(self) -> str:
        plain, used = self.ways[0], self.used
        rates = f"plain {plain.per_second:,.0f}/s, " if plain.per_second else ""
        if used is not plain:
            gain = used.per_second / plain.per_second
            rates += f"used: {used.name} {used.per_second:,.0f}/s ({gain:.2f}), "
        off = "".join(f"; off: {way.name} ({way.refused})" for way in self.ways if way.refused)
        return f"batch {self.batch}, {rates}worst cosine to fp32 {used.worst_cosine:.5f}{off}"


class Canaries:
    """The canaries of one model, and their right features."""

    def __init__(self, module: Any, spec: PixelSpec, tokens: torch.Tensor, least: float, key: str) -> None:
        """Compute or recall the right features: of the module as open_clip built it, tokens of `PROMPTS`."""
        self._least = least
        self._pixels = _pixels(spec.height, spec.width)
        self._tokens = tokens
        self._shifts = count()
        self._key = [key, str(crc32(self._pixels.tobytes())), *map(version, ("torch", "open_clip_torch"))]
        self._kept = recall("canaries", self._key)
        self._right = self._kept or self._compute(module, spec)

    def _compute(self, module: Any, spec: PixelSpec) -> dict[str, np.ndarray]:
        import torch

        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
        with torch.inference_mode():
            images = (torch.from_numpy(self._pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std
            found = {"images": module.encode_image(images), "texts": module.encode_text(self._tokens)}
            unit = torch.nn.functional.normalize
            return {name: unit(features.float(), dim=-1).numpy() for name, features in found.items()}

    def certify(self, backend: Backend, device: str) -> Certificate:
        """Try all ways of a backend, and have it use the best one; in the batcher's thread.

        Raises:
            Unfaithful: the plain way gives wrong features.
            MemoryError, RuntimeError, ValueError: the plain way fails.
        """
        if isinstance(backend, SeveralWays):
            return Certificate(backend.whole_batch, tuple(self._try_ways(backend)))
        worst = self._worst_on_cpu(backend) if device == "cpu" else self.worst_cosine(backend)
        self._require(worst)
        return Certificate(_COUNT, (Way(PLAIN, worst),))

    def forget(self) -> bool:
        """Drop features that an earlier start has kept; returns whether there were any."""
        return bool(self._kept) and forget("canaries", self._key)

    def are_met_by(self, backend: Backend) -> bool:
        """Whether a backend on the CPU gives the right features."""
        return self._worst_on_cpu(backend) >= self._least

    def _worst_on_cpu(self, backend: Backend) -> float:
        """Worst cosine: of two batches once per model, version, backend and kind of CPU, later of one."""
        runs_it = sys.modules.get(backend.name)  # torch or OpenVINO
        key = [*self._key, str(type(backend)), backend.name, getattr(runs_it, "__version__", ""), cpu_name()]
        known = recall("verdict", key).get("worst", ())
        worst = _least(self.worst_cosine(backend, 1 if len(known) else 2), *known)
        if worst >= self._least:
            keep("verdict", key, {"worst": np.array([worst])})
        return worst

    def worst_cosine(self, backend: Backend, batches: int = 2) -> float:
        """Worst cosine of all canaries now, by the way in use; NaN if one is NaN. In the batcher's thread."""
        worst = self._cosines(backend, getattr(backend, "whole_batch", _COUNT), batches)
        for step in (1, -1)[:batches]:  # another order, so that features of the previous call are wrong
            order = np.arange(_COUNT)[::step].copy()
            found = backend.encode_texts(self._tokens[order])
            worst.append(_worst_cosine(found, self._right["texts"][order]))
        return _least(*worst)

    def _try_ways(self, backend: SeveralWays) -> list[Way]:
        backend.use(PLAIN)
        ways = [best := self._timed(PLAIN, backend)]
        self._require(best.worst_cosine)
        for name in backend.ways[1:]:
            ways.append(self._tried(name, backend, best))
            if ways[-1].refused:
                backend.use(best.name)
                self._require(self.worst_cosine(backend))  # fails if the attempt has cost the device
            else:
                best = ways[-1]
        return ways

    def _tried(self, name: str, backend: SeveralWays, best: Way) -> Way:
        try:
            backend.use(name)
            way = self._timed(name, backend)
        except FORWARD_ERRORS as error:
            return Way(name, refused=first_line(error))
        if not way.worst_cosine >= self._least:
            return replace(way, refused=f"worst cosine {way.worst_cosine:.5f}, not {self._least}")
        if way.per_second < best.per_second * _LEAST_GAIN:
            return replace(way, refused=f"no faster: {way.per_second:,.0f}/s")
        return way

    def _timed(self, name: str, backend: SeveralWays) -> Way:
        few = self._cosines(backend, min(_COUNT, backend.whole_batch), 2)  # rarely a whole batch
        worst = _least(self.worst_cosine(backend), *few)
        began = perf_counter()
        found = self._cosines(backend, backend.whole_batch, _TIMED_BATCHES, began + _TIMED_SECONDS)
        return Way(name, _least(worst, *found), backend.whole_batch * len(found) / (perf_counter() - began))

    def _require(self, worst: float) -> None:
        if not worst >= self._least:
            raise Unfaithful(f"worst cosine to fp32 on the CPU {worst:.5f}, at least {self._least} is needed")
        if not self._kept:
            keep("canaries", self._key, self._right)

    def _cosines(self, backend: Backend, rows: int, batches: int, until: float = float("inf")) -> list[float]:
        """The worst of each batch, each in another order, so that features of the previous one are wrong."""
        worst: list[float] = []
        under_way: deque[tuple[np.ndarray, PendingFeatures]] = deque()
        while batches:
            order = (np.arange(rows) + next(self._shifts)) % _COUNT
            pixels = np.take(self._pixels, order, axis=0, out=backend.new_pixels(rows), mode="clip")
            under_way.append((order, backend.begin_images(pixels)))
            batches = 0 if worst and perf_counter() >= until else batches - 1
            while len(under_way) == backend.batches_in_flight or (under_way and not batches):
                sent, pending = under_way.popleft()
                worst.append(_worst_cosine(pending.result(), self._right["images"][sent]))
        return worst


def _worst_cosine(found: np.ndarray, right: np.ndarray) -> float:
    """Worst cosine of the rows; rows that are no unit vectors count as wrong, too."""
    return _least(*(1 - np.square(found - right).sum(axis=1) / 2))


def _least(*values: float) -> float:
    return float(np.min(values))  # NaN if one is NaN; `min` would lose it


def _pixels(height: int, width: int) -> np.ndarray:
    """Squares of all sizes in random colours, with noise; uint8 (n, height, width, 3)."""
    random = np.random.default_rng(13)
    images = []
    for squares in range(1, _COUNT + 1):
        colours = random.integers(0, 256, (squares, squares, 3))
        rows, columns = (np.arange(length) * squares // length for length in (height, width))
        images.append(colours[rows][:, columns] + random.integers(-16, 17, (height, width, 3)))
    return np.asarray(np.clip(images, 0, 255), dtype=np.uint8)
