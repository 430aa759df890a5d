"""One batch: items of several chunks that go through the device together, and their results.

A batch is begun, then finished; on an asynchronous device others are begun in between. Errors of its forward
pass are raised when it is finished, so that items end in the order in which they were taken. Which items go
into a batch, and when, is decided in `batcher`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from clipfleet.contract.bottleneck import Meter
from clipfleet.contract.jobs import ErrorCode, ItemError, Lane, Precision
from clipfleet_worker.encode.backends import PendingFeatures, ReadyFeatures
from clipfleet_worker.encode.bisecting import FORWARD_ERRORS, DeviceFault, Results, encode_each
from clipfleet_worker.encode.unit_vectors import have_direction, why_not
from clipfleet_worker.outcomes import Outcomes
from clipfleet_worker.process.device import is_lost
from clipfleet_worker.process.shortages import shortage_behind

_HARMLESS_TEXT = "a"


class Encoder(Protocol):
    """A loaded model as the batcher and the text matrices use it."""

    fingerprint: str
    device: str
    embedding_dimension: int

    @property
    def precision(self) -> Precision:
        """Of its weights and activations, never AUTO."""

    @property
    def batches_in_flight(self) -> int:
        """How many batches may be begun before the first one is finished."""

    def new_pixels(self, count: int) -> np.ndarray:
        """An array to be filled for `begin_images`, see `clipfleet_worker.encode.backends.Backend`."""

    def begin_images(self, pixels: np.ndarray) -> PendingFeatures:
        """Start on a batch of pixels, see `clipfleet_worker.encode.backends.Backend`."""

    def encode_texts(self, prompts: list[str]) -> np.ndarray:
        """Prompts -> features float32 (n, d), L2-normalised."""


@dataclass(eq=False, slots=True)
class ItemSlice:
    """Some items of one chunk, encoded together or apart."""

    encoder: Encoder
    lane: Lane
    items: list[np.ndarray] | list[str]  # images uint8 (height, width, 3) of the model's size, or texts
    positions: list[int]  # of the items in the chunk
    outcomes: Outcomes
    taken: int = 0  # items already in a batch
    submitted_at: float = 0.0  # monotonic

    @property
    def kind(self) -> tuple[Encoder, bool]:
        """What items of one batch have in common: the model, and whether they are texts."""
        return self.encoder, isinstance(self.items[0], str)


@dataclass(frozen=True, slots=True)
class Segment:
    """The part of a slice that went into one batch."""

    slice: ItemSlice
    start: int
    stop: int

    @property
    def items(self) -> Sequence[np.ndarray | str]:
        """Its images or texts."""
        return self.slice.items[self.start : self.stop]


class Batch:
    """Items of one model, all images or all texts. Belongs to the batcher's thread."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        """Begin its forward pass.

        Args:
            segments: at least one; they have one `kind`.
        """
        self._segments = segments
        self._items: list[Any] = [item for segment in segments for item in segment.items]
        self.size = len(self._items)
        self.kind = self._encoder, self._is_text = segments[0].slice.kind
        # On the device; None until it is finished, and if the device has failed.
        self.seconds_each: float | None = None
        self._begun_at = time.monotonic()
        self._pending: PendingFeatures | None = self._begin()
        self.leaves_room = False  # the next batch may be begun
        self.leaves_idle = False  # part of the device is idle until that one begins

    @property
    def batches_in_flight(self) -> int:
        """How many batches of its model may be under way; texts are encoded synchronously."""
        return 1 if self._is_text else self._encoder.batches_in_flight

    def wait_for_room(self) -> None:
        """Block until the next batch may be begun: begun earlier, it would only delay better lanes."""
        self.leaves_idle = self._pending is not None and self._pending.wait_for_room()
        self.leaves_room = True

    def finish(self, idle_since: float) -> None:
        """Wait for the features and deliver them, or the errors of items that fail alone.

        Args:
            idle_since: when the previous batch was finished (monotonic); time before it is not counted.

        Raises:
            Exception: the device is lost for this process.
        """
        pending, self._pending = self._pending, None  # an exception in it holds on to this object
        if pending is None:
            raise ValueError("a batch is finished once")
        harmless = _HARMLESS_TEXT if self._is_text else np.zeros_like(self._items[0])
        try:
            results = self._checked(encode_each(self._encode, self._items, harmless, first=pending.result))
        except DeviceFault as fault:
            for segment in self._segments:
                segment.slice.outcomes.interrupt(fault.error)
            if is_lost(fault.error):
                raise  # this ends the thread, and so the process; a new process can use the device again
            return
        now = time.monotonic()
        self.seconds_each = share = (now - max(self._begun_at, idle_since)) / len(self._items)
        offset = 0
        for segment in self._segments:
            count = segment.stop - segment.start
            # Before the delivery, which may end the chunk.
            segment.slice.outcomes.add_seconds("encode", share * count)
            segment.slice.outcomes.add_wait(Meter.BEYOND, (now - segment.slice.submitted_at) * count)
            _deliver(segment, results[offset : offset + count])
            offset += count

    def _checked(self, results: Results) -> Results:
        """Replace features that are no unit vectors by an exception: no row may be made of them."""
        if isinstance(results, np.ndarray) and have_direction(results).all():
            return results
        what = "this text" if self._is_text else "this image"
        no_vector = _NoVector(why_not(self._encoder.precision, what))
        return [
            result if isinstance(result, Exception) or have_direction(result[None])[0] else no_vector
            for result in results
        ]

    def _begin(self) -> PendingFeatures:
        try:
            if self._is_text:
                return ReadyFeatures(self._encoder.encode_texts(self._items))
            return self._begin_images(self._items)
        except FORWARD_ERRORS as error:
            return _FailedFeatures(error)

    def _begin_images(self, images: list[np.ndarray]) -> PendingFeatures:
        # Copied here, not decoded into place: an image's batch and row are known only when the batch is
        # gathered, and the copy takes a few percent of the time of decoding.
        pixels = self._encoder.new_pixels(len(images))
        return self._encoder.begin_images(np.stack(images, out=pixels))

    def _encode(self, items: list[Any]) -> np.ndarray:
        return self._encoder.encode_texts(items) if self._is_text else self._begin_images(items).result()


class _NoVector(Exception):  # noqa: N818 - its text goes into the row
    """The forward pass succeeded, but its result for an item is no unit vector."""


@dataclass(frozen=True, slots=True)
class _FailedFeatures:
    """The result of a batch that could not be begun."""

    error: Exception

    def wait_for_room(self) -> bool:
        return False

    def result(self) -> np.ndarray:
        raise self.error


def _deliver(segment: Segment, results: Results) -> None:
    outcomes = segment.slice.outcomes
    positions = segment.slice.positions[segment.start : segment.stop]
    if isinstance(results, np.ndarray):
        outcomes.deliver(positions, results)
        return
    good: list[tuple[int, np.ndarray]] = []
    for position, result in zip(positions, results, strict=True):
        if not isinstance(result, Exception):
            good.append((position, result))
        elif (shortage := shortage_behind(result)) is not None:
            outcomes.interrupt(shortage)
        else:
            outcomes.fail(position, _item_error(result))
    if good:
        outcomes.deliver([position for position, _ in good], np.stack([result for _, result in good]))


def _item_error(error: Exception) -> ItemError:
    if isinstance(error, _NoVector):
        return ItemError(ErrorCode.CRASHED, str(error))
    code = ErrorCode.OUT_OF_MEMORY if isinstance(error, MemoryError) else ErrorCode.CRASHED
    return ItemError(code, f"the forward pass failed on this item: {error}"[:300])
