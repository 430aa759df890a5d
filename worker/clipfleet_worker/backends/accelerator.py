"""What the CUDA backend asks of a device that works on its own: two queues of work, events, memory, a graph.

Nothing here knows CUDA. The real device is `cuda_device.CudaDevice`; the tests have one that puts off all
work for as long as it may, so that what is not ordered by an event goes wrong there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

Work = Callable[[], object]
Forward = Callable[[torch.Tensor], torch.Tensor]  # rows (n, ...) -> features float32 (n, d), normalised


class Event(Protocol):
    """A point in a stream's work."""

    def synchronize(self) -> None:
        """Block the calling thread until the device has got there; RuntimeError: work before it failed."""


class Stream(Protocol):
    """Work that the device does in this order, whatever other streams do."""

    def run(self, work: Work) -> None:
        """Have torch queue this work; returns before it is done.

        Raises:
            MemoryError: the device has no memory for it now.
            RuntimeError: it cannot be queued.
        """

    def wait_for(self, event: Event) -> None:
        """Let later work of this stream wait for an event of another one; the caller does not wait."""

    def record(self) -> Event:
        """An event that happens when all work up to now is done."""


@dataclass(frozen=True, slots=True)
class Graph:
    """A forward pass of one batch size that is queued in one step, always with the same memory."""

    rows: torch.Tensor  # read by each replay
    features: torch.Tensor  # written by it
    replay: Work  # queues it in the current stream


class Accelerator(Protocol):
    """One device of a process; all models on it share its streams."""

    copies: Stream  # from page-locked memory to the device's
    forwards: Stream  # forward passes, and their features back to the machine's memory
    graphs_off: str  # why graphs are neither recorded nor replayed any more; empty while they are

    def page_locked(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Memory of the machine that the device reads and writes by itself, in the background."""

    def memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Memory of the device; its contents are anything."""

    def place(self, what: Any, dtype: torch.dtype | None = None) -> Any:
        """A module (changed) or a tensor (copied) on the device; it is there when this returns."""

    def recorded(self, forward: Forward, rows: torch.Tensor) -> Graph:
        """The pass of these rows as a graph; raises what `Stream.run` raises. In the batcher's thread."""

    def forget_freed(self) -> None:
        """Give memory that nobody uses back to the device, for other uses and other processes."""
