"""The path of pixels to a device: page-locked arrays, each with its counterpart in the device's memory.

A batch is written into an array, and the device copies it while the passes of earlier batches run. An array
is reused once the device has copied it, its counterpart once the pass has read it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from clipfleet_worker.encode.backends.cuda_device import CudaDevice


@dataclass(eq=False, slots=True)
class _Slot:
    source: torch.Tensor  # page-locked
    target: torch.Tensor  # on the device
    fetched: torch.cuda.Event | None = None  # the last copy to the target
    read: torch.cuda.Event | None = None  # the last pass over the target


class PixelRing:
    """Belongs to one thread."""

    def __init__(self, device: CudaDevice, slots: int, shape: tuple[int, int, int, int]) -> None:
        """Allocate all memory.

        Args:
            device: copies the pixels.
            slots: batches; one more than are under way at a time, or filling one waits for the device.
            shape: (images, height, width, 3) of the largest batch.
        """
        u8 = torch.uint8
        self._device = device
        self._slots = [_Slot(device.page_locked(shape, u8), device.memory(shape, u8)) for _ in range(slots)]
        self._next = 0

    def lend(self, count: int) -> np.ndarray:
        """The array to send next, uint8 (count, height, width, 3); blocks while the device copies it."""
        slot = self._slots[self._next]
        if slot.fetched is not None:
            slot.fetched.synchronize()
        array: np.ndarray = slot.source[:count].numpy()
        return array

    def send(self, pixels: np.ndarray) -> torch.Tensor:
        """Copy pixels to the device, at most a whole batch; another array is copied into the ring first.

        Returns:
            Memory of the device; work queued in its forward stream from now on finds the pixels there.
        """
        slot = self._slots[self._next]
        if pixels.ctypes.data != slot.source.data_ptr():
            self.lend(len(pixels))[...] = pixels
        source, target = slot.source[: len(pixels)], slot.target[: len(pixels)]
        if slot.read is not None:
            self._device.copies.wait_for(slot.read)
        self._device.copies.run(lambda: target.copy_(source, non_blocking=True))
        slot.fetched = self._device.copies.record()
        self._device.forwards.wait_for(slot.fetched)
        self._next = (self._next + 1) % len(self._slots)
        return target

    def note_read(self, event: torch.cuda.Event) -> None:
        """Let the pixels that were sent last be overwritten once this event has happened."""
        self._slots[self._next - 1].read = event
