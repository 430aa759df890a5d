"""Forward passes on a CUDA device: two batches under way, a whole one by a graph if that is certified.

The pixels of a batch are copied to the device as uint8 while the previous batch is encoded, and normalised
there. Each batch ends with an event, after which its features are in page-locked memory. A batch that does
not fit the device is halved, and after a while larger ones are tried again: other processes may just have
been loading. The order of all this is tested without a device. Only `cuda_device` calls CUDA.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from clipfleet_worker.encode.backends import PendingFeatures, Towers
from clipfleet_worker.encode.backends.certificate import GRAPH, PLAIN
from clipfleet_worker.encode.backends.cuda_device import CudaDevice, Pass
from clipfleet_worker.encode.backends.pixel_ring import PixelRing
from clipfleet_worker.encode.backends.torch_backend import Forward, forwards, mean_and_deviation, torch_dtype

log = logging.getLogger(__name__)

_FIRST_PATIENCE, _MOST_PATIENCE = 64, 1 << 16  # passes that must fit before more is tried again


class CudaBackend:
    """See `Backend`, and see `SeveralWays`."""

    name = "cuda"
    batches_in_flight = 2
    ways = (PLAIN, GRAPH)

    def __init__(self, towers: Towers, device: CudaDevice, batch_size: int) -> None:
        """Copy the weights to the device.

        Args:
            towers: the model.
            device: shared with all other models of the process.
            batch_size: upper bound of images that are begun at a time.

        Raises:
            MemoryError: not enough memory on the device, or not enough that can be page-locked.
        """
        spec, dtype = towers.pixel_spec, torch_dtype(towers.precision)
        with torch.no_grad():
            self._dimension = towers.module.encode_text(towers.example_tokens).shape[1]
        self._device = device
        self._row_shape = (spec.height, spec.width, 3)
        module = device.place(towers.module.requires_grad_(False), dtype)
        mean, deviation = (device.place(one) for one in mean_and_deviation(spec))
        self._forward_images, self._forward_texts = forwards(module, mean, deviation, dtype)
        self._graph: Pass | None = None  # of whole batches
        self.whole_batch = batch_size
        self.largest_batch = batch_size  # rows at a time; reduced for a while after too many did not fit
        self._fits, self._patience = 0, _FIRST_PATIENCE
        self._ring = PixelRing(device, self.batches_in_flight + 1, (batch_size, *self._row_shape))

    def new_pixels(self, count: int) -> np.ndarray:
        """A page-locked array, for one batch at most."""
        return self._ring.lend(count)

    def begin_images(self, pixels: np.ndarray) -> PendingFeatures:
        fetched = self._ring.send(pixels)
        try:
            features = self._run(self._images, fetched)
        finally:
            done = self._device.forwards.record()
            self._ring.note_read(done)
        return _FeaturesUnderWay(features, done, self)

    def encode_texts(self, tokens: torch.Tensor) -> np.ndarray:
        rows = self._device.place(tokens)
        features = self._run(partial(_into, self._forward_texts), rows)
        return _FeaturesUnderWay(features, self._device.forwards.record(), rows).result()

    def use(self, way: str) -> None:
        """Run whole batches this way; no batch of this model may be under way."""
        self._graph = None
        self._device.forget_freed()
        if way == PLAIN:
            return
        if self._device.graphs_off:
            raise RuntimeError(self._device.graphs_off)
        if self.largest_batch < self.whole_batch:
            raise RuntimeError(f"there is only memory for {self.largest_batch} images at a time")
        rows = self._device.memory((self.whole_batch, *self._row_shape), torch.uint8)
        self._graph = self._device.recorded(self._forward_images, rows)

    def trust_only_plain(self, reason: str) -> None:
        self._device.graphs_off = reason

    def _images(self, rows: torch.Tensor, features: torch.Tensor) -> None:
        if self._graph and len(rows) == self.whole_batch and not self._device.graphs_off:
            self._graph(rows, features)
        else:
            _into(self._forward_images, rows, features)

    def _run(self, queue: Pass, rows: torch.Tensor) -> torch.Tensor:
        """Queue the passes of some rows on the device, as many at a time as it has memory for.

        Returns:
            Page-locked features float32 (n, d), valid once the device is done.

        Raises:
            MemoryError: not enough memory for one row.
            RuntimeError: a pass failed.
        """
        features = self._device.page_locked((len(rows), self._dimension), torch.float32)
        start = 0
        while start < len(rows):
            part = slice(start, min(start + self.largest_batch, len(rows)))
            try:
                self._device.forwards.run(partial(queue, rows[part], features[part]))
            except MemoryError as error:
                reason = str(error)  # the exception itself would hold the memory that has to be freed
            else:
                self._note_fit()
                start = part.stop
                continue
            self._device.forwards.record().synchronize()  # passes under way hold memory, and need the rows
            self._halve(part.stop - start, reason)
        return features

    def _note_fit(self) -> None:
        self._fits += 1
        if self._fits < self._patience:
            return
        self._fits = 0
        if self.largest_batch == self.whole_batch:
            self._patience = _FIRST_PATIENCE
            return
        self._patience = min(2 * self._patience, _MOST_PATIENCE)  # each failed attempt costs a batch
        self.largest_batch = min(self.whole_batch, 2 * self.largest_batch)
        log.info("trying %d rows at a time again", self.largest_batch, extra={"action": "batch_grows"})

    def _halve(self, rows: int, reason: str) -> None:
        if rows == 1:
            raise MemoryError(reason)
        self.largest_batch, self._fits = rows // 2, 0
        what = "no memory on the device for %d rows at a time, trying %d: %s"
        log.warning(what, rows, self.largest_batch, reason, extra={"action": "batch_halved"})
        self._device.forget_freed()


@dataclass(frozen=True, slots=True)
class _FeaturesUnderWay:
    features: torch.Tensor  # page-locked
    done: torch.cuda.Event  # then they are valid
    used: object  # keeps alive what the device uses until then

    def wait_for_room(self) -> bool:
        return False

    def result(self) -> np.ndarray:
        self.done.synchronize()
        return np.asarray(self.features)


def _into(forward: Forward, rows: torch.Tensor, features: torch.Tensor) -> None:
    features.copy_(forward(rows), non_blocking=True)
