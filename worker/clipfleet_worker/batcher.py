"""The one thread that owns the device: slices of many chunks become batches, batches become features.

Items of the best lane go first; a batch holds images, or texts, of one model only, whatever their chunks and
jobs. A batch that fails is halved until the guilty item is alone. What else wants the device, such as the
prompts of a label set, is called in between, in the lane of its job.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np

from clipfleet.contract import ErrorCode, ItemError, Lane
from clipfleet_worker.backends import PendingFeatures
from clipfleet_worker.bisecting import FORWARD_ERRORS, DeviceFault, encode_each
from clipfleet_worker.device import is_lost
from clipfleet_worker.outcomes import Outcomes
from clipfleet_worker.watchdog import LOAD_LIMIT_SECONDS, Pulse

log = logging.getLogger(__name__)

T = TypeVar("T")

_LANE_ORDER = tuple(Lane)
_LINGER_SECONDS = 0.005  # a partial batch goes when the device is idle and nothing came for this long
_MAX_PASSED_OVER = 8  # batches of better lanes before a call
_HARMLESS_TEXT = "a"
_TEXTS_PER_PASS = 64  # so that a large label set does not hold up the images of other jobs


class Encoder(Protocol):
    """A loaded model, as far as the batcher needs it."""

    @property
    def batches_in_flight(self) -> int:
        """How many batches may be begun before the first result is asked for."""
        ...

    def begin_images(self, pixels: np.ndarray) -> PendingFeatures:
        """Start on a batch of pixels, see `clipfleet_worker.backends.Backend`."""
        ...

    def encode_images(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels uint8 (n, height, width, 3) -> features float32 (n, d), L2-normalised."""
        ...

    def encode_texts(self, prompts: list[str]) -> np.ndarray:
        """Prompts -> features float32 (n, d), L2-normalised."""
        ...


@dataclass(eq=False, slots=True)
class ItemSlice:
    """Some items of one chunk, to be encoded together or apart."""

    encoder: Encoder
    lane: Lane
    items: list[np.ndarray] | list[str]  # images uint8 (height, width, 3) of the model's size, or texts
    positions: list[int]  # of the items in the chunk
    outcomes: Outcomes
    taken: int = 0  # items already in a batch

    @property
    def kind(self) -> tuple[Encoder, bool]:
        """What fits into one batch: items of one model that are all images or all texts."""
        return self.encoder, isinstance(self.items[0], str)


@dataclass(eq=False, slots=True)
class _Call:
    """Something else that is to be done on the device."""

    work: Callable[[], Any]
    future: Future[Any]

    def run(self) -> None:
        try:
            self.future.set_result(self.work())
        except FORWARD_ERRORS as error:
            self.future.set_exception(error)


@dataclass(frozen=True, slots=True)
class _Segment:
    """The part of a slice that went into one batch."""

    slice: ItemSlice
    start: int
    stop: int


class BatcherStopped(RuntimeError):  # noqa: N818 - no error, like ChunkInterrupted
    """The worker is going down; nothing will be encoded any more."""


class Batcher:
    """Start it once per device share; its other methods may be called from any thread."""

    def __init__(self, batch_size: int, *, ring_batches: int = 3, pulse: Pulse | None = None) -> None:
        self._pulse = pulse or Pulse("batcher")
        self._batch_size = batch_size
        self._ring_items = batch_size * ring_batches
        self._waiting_items = 0
        self._items: dict[Lane, deque[ItemSlice]] = {lane: deque() for lane in _LANE_ORDER}
        self._calls: dict[Lane, deque[_Call]] = {lane: deque() for lane in _LANE_ORDER}
        self._call_went_last = False
        self._passed_over = 0  # batches that went while a call waited
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Fail what waits, end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        for calls in self._calls.values():
            while calls:
                calls.popleft().future.set_exception(BatcherStopped("the worker stops"))
        for items in self._items.values():
            while items:
                items.popleft().outcomes.interrupt(BatcherStopped("the worker stops"))

    def submit(self, part: ItemSlice) -> None:
        """Queue items; blocks while the ring is full.

        Raises:
            BatcherStopped: the worker is going down.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting_items < self._ring_items or self._stopping)
            if self._stopping:
                raise BatcherStopped("the worker stops")
            self._waiting_items += len(part.items)
            self._items[part.lane].append(part)
            self._changed.notify_all()

    def encode_texts(self, encoder: Encoder, prompts: Sequence[str], lane: Lane) -> np.ndarray:
        """Features of texts, float32 (len(prompts), d); blocks until they are there. See `call`."""
        slices = [
            list(prompts[start : start + _TEXTS_PER_PASS])
            for start in range(0, len(prompts), _TEXTS_PER_PASS)
        ]
        futures = self._queue([partial(encoder.encode_texts, texts) for texts in slices], lane)
        return np.concatenate([future.result() for future in futures])

    def call(self, work: Callable[[], T], lane: Lane) -> T:
        """Have something short done on the device by its thread; blocks until it is done.

        Raises:
            BatcherStopped: the worker is going down.
            RuntimeError, ValueError, MemoryError, ArithmeticError: what `work` raised.
        """
        (future,) = self._queue([work], lane)
        return future.result()

    def _queue(self, works: Sequence[Callable[[], T]], lane: Lane) -> list[Future[T]]:
        calls = [_Call(work, Future()) for work in works]
        with self._changed:
            if self._stopping:
                raise BatcherStopped("the worker stops")
            self._calls[lane].extend(calls)
            self._changed.notify_all()
        return [call.future for call in calls]

    def _run(self) -> None:
        while self._work_once():
            pass

    def _work_once(self) -> bool:
        """Encode a batch or do a call; False at the end. While it waits nothing here keeps a model alive."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._next_lane() is not None)
            if self._stopping:
                return False
            call = self._next_call()
            batch = [] if call else self._gather()
        with self._pulse.during("call" if call else "encode", LOAD_LIMIT_SECONDS):
            if call:
                call.run()
            else:
                self._encode(batch)
        return True

    def _next_lane(self) -> Lane | None:
        return next((lane for lane in _LANE_ORDER if self._calls[lane] or self._items[lane]), None)

    def _next_call(self) -> _Call | None:
        """A call, if it is its turn: where the best lane has both, calls and batches alternate.

        A call of a worse lane than that of the waiting items goes after it was passed over often enough:
        unlike items, calls do not fill the ring until they are let through.
        """
        waiting = next((lane for lane in _LANE_ORDER if self._calls[lane]), None)
        if waiting is None:
            self._call_went_last, self._passed_over = False, 0
            return None
        is_best = waiting is self._next_lane()
        is_turn = is_best and not (self._items[waiting] and self._call_went_last)
        if not is_turn and self._passed_over < _MAX_PASSED_OVER:
            self._call_went_last, self._passed_over = False, self._passed_over + 1
            return None
        self._call_went_last, self._passed_over = True, 0
        return self._calls[waiting].popleft()

    def _gather(self) -> list[_Segment]:
        """A batch of one kind, best lane first; called with the lock held, lets it go while it lingers."""
        batch: list[_Segment] = []
        room = self._batch_size
        while room and not self._stopping:
            taken = 0
            for lane in _LANE_ORDER:
                taken += self._take(lane, room - taken, batch)
            room -= taken
            if room and taken:
                self._changed.notify_all()  # the ring has room again
            if room and not taken and not self._changed.wait(_LINGER_SECONDS):
                break
        self._changed.notify_all()
        return batch

    def _take(self, lane: Lane, room: int, batch: list[_Segment]) -> int:
        """Move what fits from a lane into the batch; returns how many items."""
        queue, kept, count = self._items[lane], deque[ItemSlice](), 0
        while queue and count < room:
            part = queue.popleft()
            if batch and part.kind != batch[0].slice.kind:
                kept.append(part)
                continue
            stop = min(len(part.items), part.taken + room - count)
            batch.append(_Segment(part, part.taken, stop))
            count += stop - part.taken
            part.taken = stop
            if stop < len(part.items):
                kept.append(part)
        queue.extendleft(reversed(kept))
        self._waiting_items -= count
        return count

    def _encode(self, batch: list[_Segment]) -> None:
        live = [segment for segment in batch if not segment.slice.outcomes.is_interrupted]
        if not live:
            return
        items = [item for segment in live for item in segment.slice.items[segment.start : segment.stop]]
        started = time.monotonic()
        encoder, is_text = live[0].slice.kind
        harmless = _HARMLESS_TEXT if is_text else np.zeros_like(items[0])
        try:
            results = encode_each(encoder.encode_texts if is_text else _stacked(encoder), items, harmless)
        except DeviceFault as fault:
            for segment in live:
                segment.slice.outcomes.interrupt(fault.error)
            if is_lost(fault.error):
                raise  # the thread's end is that of the process; a new one has the device anew
            return
        share = (time.monotonic() - started) / len(items)
        offset = 0
        for segment in live:
            count = segment.stop - segment.start
            segment.slice.outcomes.add_seconds("encode", share * count)  # first: the chunk may end now
            _deliver(segment, results[offset : offset + count])
            offset += count


def _stacked(encoder: Encoder) -> Callable[[list[np.ndarray]], np.ndarray]:
    return lambda images: encoder.begin_images(np.stack(images)).result()


def _deliver(segment: _Segment, results: list[np.ndarray | Exception]) -> None:
    outcomes = segment.slice.outcomes
    positions = segment.slice.positions[segment.start : segment.stop]
    good: list[tuple[int, np.ndarray]] = []
    for position, result in zip(positions, results, strict=True):
        if not isinstance(result, Exception):
            good.append((position, result))
        else:
            code = ErrorCode.OUT_OF_MEMORY if isinstance(result, MemoryError) else ErrorCode.CRASHED
            outcomes.fail(position, ItemError(code, f"the forward pass failed on this item: {result}"[:300]))
    if good:
        outcomes.deliver([position for position, _ in good], np.stack([result for _, result in good]))
