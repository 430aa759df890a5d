"""The way of pixels to a device: page-locked arrays, and memory of the device that each is brought to.

A batch is copied into an array, and the device fetches it while the passes of earlier batches run. An array
is lent again once the device has fetched it, its counterpart written again once the pass has read it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from clipfleet_worker.backends.accelerator import Accelerator, Event

if TYPE_CHECKING:
    import torch


class PixelRing:
    """Belongs to one thread."""

    def __init__(self, device: Accelerator, slots: int, shape: tuple[int, int, int, int]) -> None:
        """Take all the memory that is needed.

        Args:
            device: which fetches.
            slots: batches; one more than are under way at a time, or who fills one waits for the device.
            shape: (images, height, width, 3) of the largest batch.
        """
        self._device = device
        self._slots = [_Slot(device, shape) for _ in range(slots)]
        self._next = 0
        self.capacity = shape[0]

    def lend(self, count: int) -> np.ndarray:
        """The array to be sent next, uint8 (count, height, width, 3); blocks while the device fetches it.

        Until then, asking again gives the same one.
        """
        slot = self._slots[self._next]
        slot.wait_until_fetched()
        return slot.array[:count]

    def send(self, pixels: np.ndarray) -> torch.Tensor:
        """Have the device fetch pixels, at most `capacity` of them.

        What is not the array that was lent is copied there first.

        Returns:
            Memory of the device; work that is queued in its forward stream from now on finds them in it.
        """
        slot = self._slots[self._next]
        if pixels.ctypes.data != slot.array.ctypes.data:
            lent = self.lend(len(pixels))
            lent[...] = pixels
        fetched = slot.send(self._device, len(pixels))
        self._next = (self._next + 1) % len(self._slots)
        return fetched

    def note_read(self, fetched: torch.Tensor, event: Event) -> None:
        """What `send` gave may be written over once this event has happened."""
        slot = next(slot for slot in self._slots if slot.is_at(fetched))
        slot.read = event


class _Slot:
    def __init__(self, device: Accelerator, shape: tuple[int, int, int, int]) -> None:
        import torch

        self._source = device.page_locked(shape, torch.uint8)
        self._target = device.memory(shape, torch.uint8)
        self.array: np.ndarray = self._source.numpy()
        self._fetched: Event | None = None  # the last time
        self.read: Event | None = None  # likewise

    def is_at(self, memory: torch.Tensor) -> bool:
        return self._target.data_ptr() == memory.data_ptr()

    def wait_until_fetched(self) -> None:
        if self._fetched is not None:
            self._fetched.wait()

    def send(self, device: Accelerator, count: int) -> torch.Tensor:
        source, target = self._source[:count], self._target[:count]
        if self.read is not None:
            device.copies.wait_for(self.read)
        device.copies.run(partial(_copy, target, source))
        self._fetched = device.copies.record()
        device.forwards.wait_for(self._fetched)
        return target


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    target.copy_(source, non_blocking=True)
