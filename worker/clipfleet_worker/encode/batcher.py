"""The one thread that owns the device: slices of many chunks become batches, batches become features.

Items of the best lane go first; a batch holds images, or texts, of one model only, of any chunks and jobs. On
an asynchronous device the next batch is gathered and begun, and the previous one delivered, while it works.
Other work on the device, such as the prompts of a label set, is called between batches, in its job's lane.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from clipfleet.contract.jobs import Lane
from clipfleet_worker.encode.batch_sizes import BatchSizes
from clipfleet_worker.encode.batches import Batch, Encoder, ItemSlice, Segment
from clipfleet_worker.encode.bisecting import FORWARD_ERRORS
from clipfleet_worker.encode.lane_queue import MOST_PASSED_OVER, LaneQueue
from clipfleet_worker.process.counts import BusyMeter
from clipfleet_worker.process.watchdog import LOAD_LIMIT_SECONDS, Pulse

T = TypeVar("T")

_LANE_ORDER = tuple(Lane)
_LINGER_SECONDS = 0.005  # a partial batch is begun when the device is idle and no item came for this long
_MAX_CALLS_IN_A_ROW = 8  # while items wait, of any lane
_TEXTS_PER_PASS = 64  # so that a large label set does not delay the images of other jobs


@dataclass(eq=False, slots=True)
class _Call:
    """Other work on the device."""

    work: Callable[[], Any]
    future: Future[Any]

    def run(self) -> None:
        try:
            self.future.set_result(self.work())
        except FORWARD_ERRORS as error:
            self.future.set_exception(error)
            del self  # the exception holds this stack frame: a cycle would keep what failed in memory


@dataclass(frozen=True, slots=True)
class BatchTotals:
    """Batches that went to the device since the process began."""

    batches: int = 0
    items: int = 0  # in them; `batches * batch_size` would have had room


class BatcherStopped(RuntimeError):  # noqa: N818 - no error, like ChunkInterrupted
    """The worker stops; nothing more is encoded."""


class Batcher:
    """Started once per device share; all other methods are thread-safe."""

    def __init__(
        self,
        batch_size: int,
        *,
        least_batch: int | None = None,
        ring_batches: int = 3,
        pulse: Pulse | None = None,
    ) -> None:
        """Prepare the thread.

        Args:
            batch_size: most items of a batch.
            least_batch: see `BatchSizes`.
            ring_batches: how many of them may wait.
            pulse: of the thread.
        """
        self._sizes = BatchSizes(batch_size, least_batch)
        self._pulse = pulse or Pulse("batcher")
        self.busy = BusyMeter(1)  # while the device has work
        self.batch_size = batch_size  # most items of a batch
        self._ring_items = batch_size * ring_batches
        self._waiting_items = 0
        self._wake_at_items = 1  # fewer waiting items do not wake the thread; while it lingers, a full batch
        self._items: dict[Lane, deque[ItemSlice]] = {lane: deque() for lane in _LANE_ORDER}
        self._calls = LaneQueue[_Call]()
        self._calls_in_a_row = 0  # that went since the last batch
        self._passed_over = 0  # batches that went while a call waited
        self._under_way: deque[Batch] = deque()  # begun and not finished, oldest first; the thread's own
        self._finished_at = 0.0  # the last of them, monotonic
        self.totals = BatchTotals()  # replaced after each batch, so that readers need no lock
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Fail all waiting items and calls, and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        while self._calls:
            self._calls.take().future.set_exception(BatcherStopped("the worker stops"))
        for items in self._items.values():
            while items:
                items.popleft().outcomes.interrupt(BatcherStopped("the worker stops"))

    def submit(self, part: ItemSlice) -> None:
        """Queue items; blocks while the ring is full. It has room for one more batch of the best lane.

        Raises:
            BatcherStopped: the worker stops.
        """
        part.submitted_at = time.monotonic()
        room = self._ring_items + (self.batch_size if part.lane is _LANE_ORDER[0] else 0)
        with self._changed:
            self._changed.wait_for(lambda: self._waiting_items < room or self._stopping)
            if self._stopping:
                raise BatcherStopped("the worker stops")
            self._waiting_items += len(part.items)
            self._items[part.lane].append(part)
            if self._waiting_items >= self._wake_at_items:
                self._changed.notify_all()

    def encode_texts(self, encoder: Encoder, prompts: Sequence[str], lane: Lane) -> np.ndarray:
        """Features of texts, float32 (len(prompts), d); blocks until they are ready. See `call`."""
        slices = [
            list(prompts[start : start + _TEXTS_PER_PASS])
            for start in range(0, len(prompts), _TEXTS_PER_PASS)
        ]
        return np.concatenate(self._do([partial(encoder.encode_texts, texts) for texts in slices], lane))

    def call(self, work: Callable[[], T], lane: Lane) -> T:
        """Run something short in the device's thread; blocks until it is done.

        Raises:
            BatcherStopped: the worker stops.
            RuntimeError, ValueError, MemoryError, ArithmeticError: what `work` raised.
        """
        return self._do([work], lane)[0]

    def _do(self, works: Sequence[Callable[[], T]], lane: Lane) -> list[T]:
        futures = self._queue(works, lane)
        try:
            return list(map(Future.result, futures))  # a comprehension would add a stack frame
        finally:
            del futures  # see `_Call.run`

    def _queue(self, works: Sequence[Callable[[], T]], lane: Lane) -> list[Future[T]]:
        calls = [_Call(work, Future()) for work in works]
        with self._changed:
            if self._stopping:
                raise BatcherStopped("the worker stops")
            for call in calls:
                self._calls.put(lane, call)
            self._changed.notify_all()
        return [call.future for call in calls]

    def _run(self) -> None:
        while self._work_once():
            pass

    def _work_once(self) -> bool:
        """Begin a batch, finish one, or run a call; returns False at the end.

        While it waits for work it keeps no model alive.
        """
        call, segments = None, []
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._under_way or self._next_lane() is not None)
            if self._stopping and not self._under_way:
                return False
            if self._may_begin():
                call = self._next_call()
                segments = [] if call else self._gather()
        with self._pulse.during("call" if call else "encode", LOAD_LIMIT_SECONDS), self.busy:
            if call:
                call.run()
                call = None  # an exception holds this stack frame, too
            elif segments:
                self._begin(segments)
            elif len(self._under_way) == 1 and not self._under_way[0].leaves_room:
                self._under_way[0].wait_for_room()
            elif self._under_way:
                self._finish(self._under_way.popleft())
        return True

    def _begin(self, segments: list[Segment]) -> None:
        live = [segment for segment in segments if not segment.slice.outcomes.is_interrupted]
        if live:
            self._under_way.append(Batch(live))

    def _finish(self, batch: Batch) -> None:
        batch.finish(self._finished_at)
        self._finished_at = time.monotonic()
        encoder, is_text = batch.kind
        if batch.seconds_each is not None:
            self._sizes.note(encoder, is_text=is_text, seconds_each=batch.seconds_each)
        self.totals = BatchTotals(self.totals.batches + 1, self.totals.items + batch.size)

    def _may_begin(self) -> bool:
        """Whether another batch or call may be begun now.

        Behind a batch that keeps the whole device busy only a full one is begun: a smaller one would gain
        nothing. After a call the batch under way is delivered first.
        """
        if self._stopping or not self._under_way:
            return not self._stopping
        last = self._under_way[-1]
        is_full = not last.leaves_room or len(self._under_way) >= last.batches_in_flight
        if is_full or self._calls_in_a_row:
            return False
        return self._waiting_items >= (1 if last.leaves_idle else self._full_batch())

    def _next_lane(self) -> Lane | None:
        """The best lane that has calls or items."""
        lanes = {self._calls.best_lane, *(lane for lane in _LANE_ORDER if self._items[lane])}
        return next((lane for lane in _LANE_ORDER if lane in lanes), None)

    def _next_call(self) -> _Call | None:
        """The next call, if it is its turn: if the best lane has both, calls and batches alternate.

        A call of a worse lane than the waiting items goes after so many batches: calls do not fill the ring,
        so that nothing else would ever stop the items before them. And so do items after so many calls.
        """
        waiting = self._calls.best_lane
        if waiting is None:
            self._calls_in_a_row, self._passed_over = 0, 0
            return None
        in_a_row, has_items = self._calls_in_a_row, self._waiting_items > 0
        is_turn = waiting is self._next_lane() and not (self._items[waiting] and in_a_row)
        if has_items and in_a_row >= _MAX_CALLS_IN_A_ROW:
            is_turn = False
        if not is_turn and self._passed_over < MOST_PASSED_OVER:
            self._calls_in_a_row, self._passed_over = 0, self._passed_over + 1
            return None
        self._calls_in_a_row, self._passed_over = in_a_row + 1, 0
        return self._calls.take()

    def _full_batch(self) -> int:
        """Items of a full batch of those that go next; called with the lock held."""
        first = next((items[0] for items in self._items.values() if items), None)
        if first is None:
            return self.batch_size
        encoder, is_text = first.kind
        return self._sizes.of(encoder, is_text=is_text)

    def _gather(self) -> list[Segment]:
        """A batch of one kind, best lane first; called with the lock held, releases it while it lingers."""
        batch: list[Segment] = []
        room, has_lingered = self._full_batch(), False
        while room and not self._stopping:
            taken = 0
            for lane in _LANE_ORDER:
                taken += self._take(lane, room - taken, batch)
            room -= taken
            if room and taken:
                self._changed.notify_all()  # the ring has room again
            if room and not taken:
                if self._under_way or has_lingered:
                    break
                self._wake_at_items = room
                has_lingered = not self._changed.wait(_LINGER_SECONDS)
            else:
                has_lingered = False
        self._wake_at_items = 1
        self._changed.notify_all()
        return batch

    def _take(self, lane: Lane, room: int, batch: list[Segment]) -> int:
        """Move what fits from a lane into the batch; returns how many items."""
        queue, kept, count = self._items[lane], deque[ItemSlice](), 0
        while queue and count < room:
            part = queue.popleft()
            if batch and part.kind != batch[0].slice.kind:
                kept.append(part)
                continue
            stop = min(len(part.items), part.taken + room - count)
            batch.append(Segment(part, part.taken, stop))
            count += stop - part.taken
            part.taken = stop
            if stop < len(part.items):
                kept.append(part)
        queue.extendleft(reversed(kept))
        self._waiting_items -= count
        return count
