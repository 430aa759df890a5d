"""Backends run the forward passes of a loaded model: the protocol here, one file per kind.

A backend knows pixels, tokens and features; nothing of names, files, tokenizers, chunks or jobs.

Neither backend nor device is part of the model fingerprint: in the same precision all backends must stay
within the bars of `tests/integration/test_fidelity.py`, measured against open_clip's own fp32. So workers
with different backends share jobs, text matrices and the parts they adopt, and a backend that misses the bars
is not used. Precision is part of it: it moves an embedding ten to a hundred times as far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from clipfleet.contract.jobs import Precision
from clipfleet_worker.pixel_spec import PixelSpec

if TYPE_CHECKING:
    import torch


class PendingFeatures(Protocol):
    """Features of a batch that the device may still be computing."""

    def wait_for_room(self) -> bool:
        """Block until the next batch may be begun.

        Returns:
            Whether part of the device is idle then, so that any batch gains by beginning now. Otherwise, as
            with batches that queue up before a device that works in order, only a full one does.
        """

    def result(self) -> np.ndarray:
        """Features float32 (n, d), L2-normalised; blocks until the device has them.

        Raises:
            MemoryError: too little memory on the device or in the machine.
            RuntimeError, ValueError, ArithmeticError: the forward pass failed.
        """


class Backend(Protocol):
    """The forward passes of one model on one device; only the batcher's thread may call it."""

    name: str  # torch, openvino, cuda
    batches_in_flight: int  # how many may be begun before the first one is finished

    def new_pixels(self, count: int) -> np.ndarray:
        """An uninitialised array uint8 (count, height, width, 3) to fill and pass to `begin_images` next.

        It is in the memory that the device reads fastest. `count` is at most the worker's batch size.
        """

    def begin_images(self, pixels: np.ndarray) -> PendingFeatures:
        """Start on a batch, uint8 (n, height, width, 3); returns as soon as the device has its work.

        The array must stay as it is until `result` has returned or raised. Raises what `result` raises.
        """

    def encode_texts(self, tokens: torch.Tensor) -> np.ndarray:
        """Token ids int64 (n, context length) -> features float32 (n, d), L2-normalised.

        Raises what `PendingFeatures.result` raises.
        """


@runtime_checkable
class SeveralWays(Backend, Protocol):
    """A backend with several ways of running a whole batch, each used only if its features are right."""

    ways: tuple[str, ...]  # the plain one first
    whole_batch: int  # images

    def use(self, way: str) -> None:
        """Run whole batches this way from now on, instead of the previous way.

        Raises:
            MemoryError, RuntimeError: this way cannot be used now.
        """

    def trust_only_plain(self, reason: str) -> None:
        """Run all batches plainly from now on, of all models on the device."""


@dataclass(frozen=True, slots=True)
class ReadyFeatures:
    """See `PendingFeatures`. Features that are ready at once: the backend works synchronously."""

    features: np.ndarray  # float32 (n, d), L2-normalised

    def wait_for_room(self) -> bool:
        return False

    def result(self) -> np.ndarray:
        return self.features


@dataclass(frozen=True, slots=True)
class Towers:
    """The parts of a model from which a backend is made."""

    module: Any  # as open_clip built it: on the CPU, fp32, evaluation mode; the backend may change it
    pixel_spec: PixelSpec
    example_tokens: torch.Tensor  # int64 (1, context length)
    precision: Precision  # never AUTO
    key: str  # covers all that its features depend on except the backend; clipfleet's version included
    is_right: Callable[[Backend], bool]  # whether a backend gives this model's features


MakeBackend = Callable[[Towers, str], Backend]  # the string is torch's name of the device
