"""What the CUDA backend asks of a device that works on its own: two queues of work, events, memory, graphs.

Nothing here knows CUDA. The real device is `cuda_device.CudaDevice`; the tests have one that puts off all
work for as long as it may, so that what is not ordered by an event goes wrong there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

Work = Callable[[], None]


class Event(Protocol):
    """A point in a stream's work."""

    def wait(self) -> None:
        """Block the calling thread until the device has got there.

        Raises:
            RuntimeError: the work before it failed.
        """
        ...


class Stream(Protocol):
    """Work that the device does in this order, whatever other streams do."""

    def run(self, work: Work) -> None:
        """Have torch queue this work; returns before it is done.

        Raises:
            MemoryError: the device has no memory for it now.
            RuntimeError: it cannot be queued.
        """
        ...

    def wait_for(self, event: Event) -> None:
        """Let later work of this stream wait for an event of another one; the caller does not wait."""
        ...

    def record(self) -> Event:
        """An event that happens when all work up to now is done."""
        ...


class Accelerator(Protocol):
    """One device of a process; all models on it share its streams."""

    copies: Stream  # from page-locked memory to the device's
    forwards: Stream  # forward passes, and their features back to the machine's memory

    def page_locked(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Memory of the machine that the device reads and writes by itself, in the background."""
        ...

    def memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Memory of the device; its contents are anything."""
        ...

    def place(self, what: Any, dtype: torch.dtype | None = None) -> Any:
        """A module (changed) or a tensor (copied) on the device; it is there when this returns."""
        ...

    def rehearse(self, work: Work) -> None:
        """Do work beside both streams, some times over, until all that is lazy in it is set up.

        Raises what `Stream.run` and `Event.wait` raise.
        """
        ...

    def new_pool(self) -> Any:
        """A pool of memory for graphs that never run at the same time."""
        ...

    def recorded(self, work: Work, pool: Any) -> Work:
        """The same work as a graph, which is queued in one step: same memory, same numbers.

        Raises:
            MemoryError: the device has no memory for it now.
            RuntimeError: it cannot be recorded, as when it needs an answer of the device in between.
        """
        ...

    def forget_freed(self) -> None:
        """Give memory that nobody uses back to the device, for other uses and other processes."""
        ...
