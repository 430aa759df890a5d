"""Limits how much a worker takes on: it counts open items before each claim."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from clipfleet.contract.jobs import Lane
from clipfleet_worker.fetch.waiting_bytes import RESERVED_SHARE

# Ended items, which hold a vector each, that may wait for others of their chunk, per item of the limit.
_ENDED_PER_OPEN = 16


class OpenItems:
    """Counts items between claim and completion, without the ended ones of unfinished chunks."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.count = 0  # open now
        self._from_reserve = 0  # of these, claimed while only the best lane had room
        self._ended = 0  # not counted, although their chunk is unfinished
        self._closed = False
        self._changed = threading.Condition()

    def wait_for_room(self, timeout_seconds: float | None = None) -> Sequence[Lane]:
        """Block while full; returns the lanes to claim from, none after `close`."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._lanes(), timeout_seconds)
            return () if self._closed else self._lanes()

    def _lanes(self) -> Sequence[Lane]:
        if self.has_room_in_all_lanes:
            return tuple(Lane)
        return (Lane.HIGH,) if self._from_reserve < self.limit * RESERVED_SHARE else ()

    def wait_for_room_in_all_lanes(
        self, timeout_seconds: float, unless: Callable[[], bool] = lambda: False
    ) -> None:
        """Block until all lanes have room, the timeout is over, or after `close`.

        Args:
            timeout_seconds: upper bound of the wait.
            unless: ends the wait, too; it is called again after `wake`.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self.has_room_in_all_lanes or unless(), timeout_seconds
            )

    def wake(self) -> None:
        """Make waiting threads check again."""
        with self._changed:
            self._changed.notify_all()

    def add(self, count: int, *, from_reserve: bool = False) -> None:
        """Count claimed items; `from_reserve`: only the best lane had room."""
        with self._changed:
            self.count += count
            self._from_reserve += count if from_reserve else 0

    def remove(self, count: int, *, from_reserve: bool = False) -> None:
        """Remove completed or released items, with the arguments of `add`."""
        with self._changed:
            self.count -= count
            self._from_reserve -= count if from_reserve else 0
            self._changed.notify_all()

    @contextmanager
    def making_room(self) -> Iterator[Callable[[int], None]]:
        """A context in which the items of a chunk end one by one.

        Yields a function that takes the number of newly ended items. They count no longer, so that a chunk
        with a few dead hosts does not block its worker. After the context all count again, until `remove`, so
        that chunks that wait to be written do not pile up.
        """
        ended, is_over = 0, False

        def make_room(count: int) -> None:
            nonlocal ended
            with self._changed:
                if not is_over:
                    freed = min(count, _ENDED_PER_OPEN * self.limit - self._ended)
                    ended += freed
                    self._ended += freed
                    self.count -= freed
                    if self.has_room_in_all_lanes:  # else no wait is over, and this runs with every batch
                        self._changed.notify_all()

        try:
            yield make_room
        finally:
            with self._changed:
                is_over = True
                self._ended -= ended
                self.count += ended

    def close(self) -> None:
        """Stop all claims: threads that wait for room return without a lane."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def has_room_in_all_lanes(self) -> bool:
        """Whether chunks of all lanes may be claimed."""
        return self.count < self.limit * (1 - RESERVED_SHARE)
