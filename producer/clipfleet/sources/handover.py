"""Hands the items of an iterator over to a submit in another thread, so that its pauses hold nothing back.

The iterator runs in the thread of whoever made it: it may hold a database connection, or anything else that
belongs to one thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa

from clipfleet.sources.batches import MAX_BYTES, MAX_ROWS, PASS_ON_SECONDS, Source
from clipfleet.sources.iterable import IterableSource
from clipfleet.sources.lists.records import Record, size_bytes

T = TypeVar("T")


def run_beside(
    source: IterableSource, run: Callable[[Source], T], on_break: Callable[[], None] = lambda: None
) -> T:
    """Read the source in this thread while `run` works on its items in another one; return its answer.

    Raises whatever `run` or the iterator raises. If `run` ends early, the iterator is left after its next
    item.

    `on_break` is called once there is something to raise, Ctrl-C included: `run` should end soon.
    """
    handover = Handover(source)
    with ThreadPoolExecutor(1, thread_name_prefix="submit") as pool:
        running: Future[T] = pool.submit(run, handover)
        running.add_done_callback(lambda _: handover.leave())
        try:
            handover.feed()
            return running.result()
        except BaseException:
            on_break()
            raise


class Handover:
    """See `clipfleet.sources.Source`; `batches` is read in one thread, `feed` called in another."""

    def __init__(self, source: IterableSource) -> None:
        self.description = source.description
        self._source = source
        self._held: list[Record] = []
        self._held_bytes = 0
        self._error: BaseException | None = None
        self._has_ended = False
        self._is_left = False
        self._changed = threading.Condition()

    def feed(self) -> None:
        """Read the source to its end, waiting while many items are not taken yet.

        What the iterator raises, Ctrl-C included, is raised by `batches`.
        """
        try:
            for record in self._source.records():
                with self._changed:
                    self._held.append(record)
                    self._held_bytes += size_bytes(record)
                    if self._is_full():
                        self._changed.notify_all()
                        self._changed.wait_for(lambda: not self._is_full() or self._is_left)
                    if self._is_left:
                        return
        except BaseException as error:
            self._end(error)
            raise
        self._end(None)

    def leave(self) -> None:
        """Nobody takes items any more."""
        with self._changed:
            self._is_left = True
            self._changed.notify_all()

    def batches(self) -> Iterator[pa.RecordBatch]:
        index = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._has_ended or self._is_full(), PASS_ON_SECONDS)
                records, self._held, self._held_bytes = self._held, [], 0
                has_ended = self._has_ended
                self._changed.notify_all()
            if records or not has_ended:
                yield self._source.batch(index, records)
                index += len(records)
            elif self._error is not None:
                raise self._error
            else:
                return

    def _is_full(self) -> bool:
        return len(self._held) >= MAX_ROWS or self._held_bytes >= MAX_BYTES

    def _end(self, error: BaseException | None) -> None:
        with self._changed:
            self._error = error
            self._has_ended = True
            self._changed.notify_all()
