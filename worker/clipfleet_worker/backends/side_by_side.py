"""Forward passes by torch on the processor, a part of the batch per group of cores, side by side.

Threads that share one pass wait for one another after each layer, and decoding takes a core from one of them
again and again: all others wait for that one. Passes that share nothing do not. On two cores (Xeon with AMX,
ViT-B-32 in bf16, four rounds), images/s of two threads to those of torch's own two on one pass of 64: 1.12
with parts of 32, 0.90 with parts of 64; with decoding beside them, in a whole worker, 1.10 (1.07 in fp32).

torch is imported when a backend is made, not before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from clipfleet_worker.backends import Towers
from clipfleet_worker.backends.torch_backend import TorchBackend
from clipfleet_worker.thread_rule import passes_side_by_side

if TYPE_CHECKING:
    import torch


class SideBySideBackend:
    """See `Backend`. What it is made of must not change in a forward pass, as usual modules do not."""

    name = "torch"
    batches_in_flight = 2  # whichever thread is done with its part has another one

    def __init__(self, towers: Towers, device: str) -> None:
        import torch

        if device != "cpu":
            raise ValueError(f"parts of a batch go side by side on the processor, not on {device}")
        self._torch = TorchBackend(towers, device)
        self._passes, threads_each = passes_side_by_side(torch.get_num_threads())
        self._pool = _pool(self._passes, threads_each)

    def new_pixels(self, count: int) -> np.ndarray:
        """See the protocol; plain memory."""
        return self._torch.new_pixels(count)

    def begin_images(self, pixels: np.ndarray) -> PendingParts:
        """See the protocol."""
        return self._begin(self._torch.encode_images, pixels)

    def encode_texts(self, tokens: torch.Tensor) -> np.ndarray:
        """See the protocol."""
        return self._begin(self._torch.encode_texts, tokens).result()

    def warm_up(self) -> None:
        """An image and a text per thread, for torch's lazy set-up."""
        for pending in [self._pool.submit(self._torch.warm_up) for _ in range(self._passes)]:
            pending.result()

    def _begin(self, encode: Callable[[Any], np.ndarray], items: Any) -> PendingParts:
        size = -(-len(items) // self._passes)
        starts = range(0, len(items), size)
        return PendingParts([self._pool.submit(encode, items[start : start + size]) for start in starts])


@dataclass(frozen=True, slots=True)
class PendingParts:
    """See `PendingFeatures`: of the parts of a batch, in order."""

    parts: list[Future[np.ndarray]]

    def result(self) -> np.ndarray:
        """See the protocol; of several parts that failed the first one tells why."""
        return np.concatenate([part.result() for part in self.parts])


def _pool(passes: int, threads_each: int) -> ThreadPoolExecutor:
    """Threads whose forward passes keep so many cores busy each; they end with the pool."""
    import torch

    all_threads = torch.get_num_threads()
    have_started = threading.Barrier(passes)

    def take_share() -> None:
        torch.get_num_threads()  # else the first pass would set the number of the process
        torch.set_num_threads(threads_each)
        have_started.wait()

    pool = ThreadPoolExecutor(passes, thread_name_prefix="forward", initializer=take_share)
    for started in [pool.submit(int) for _ in range(passes)]:  # all of them: none is idle before the last one
        started.result()
    torch.set_num_threads(all_threads)  # for threads that are yet to come it was changed, too
    return pool
