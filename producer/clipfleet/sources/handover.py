"""Passes the items of an iterator to a submit in another thread, so that pauses do not delay earlier items.

The iterator stays in the caller's thread: it may use a database connection or another thread-bound object.
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
    """Read the source in this thread while `run` processes its items in another; return its result.

    Raises what `run` or the iterator raises. If `run` ends early, iteration stops after the next item.
    `on_break` is called on any exception, Ctrl-C included: it should make `run` end soon.
    """
    handover = Handover(source)
    with ThreadPoolExecutor(1, thread_name_prefix="submit") as pool:
        running: Future[T] = pool.submit(run, handover)
        running.add_done_callback(lambda _: handover.abandon())
        try:
            handover.feed()
            return running.result()
        except BaseException:
            on_break()
            raise


class Handover:
    """A queue between two threads; see `clipfleet.sources.Source`. One calls `feed`, the other `batches`."""

    def __init__(self, source: IterableSource) -> None:
        self.description = source.description
        self._source = source
        self._held: list[Record] = []
        self._held_bytes = 0
        self._error: BaseException | None = None
        self._has_ended = False
        self._is_abandoned = False
        self._changed = threading.Condition()

    def feed(self) -> None:
        """Read the source to its end, blocking while the queue is full.

        `batches` raises what the iterator raises, Ctrl-C included.
        """
        try:
            for record in self._source.records():
                with self._changed:
                    self._held.append(record)
                    self._held_bytes += size_bytes(record)
                    if self._is_full():
                        self._changed.notify_all()
                        self._changed.wait_for(lambda: not self._is_full() or self._is_abandoned)
                    if self._is_abandoned:
                        return
        except BaseException as error:
            self._end(error)
            raise
        self._end(None)

    def abandon(self) -> None:
        """Stop feeding: the consumer has ended."""
        with self._changed:
            self._is_abandoned = True
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
