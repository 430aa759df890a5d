"""How much a worker takes on: open items are counted before each claim."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from clipfleet.contract.jobs import Lane
from clipfleet_worker.fetch.waiting_bytes import RESERVED_SHARE

# Items that have ended and wait for others of their chunk, for each open one: they hold a vector each.
_ENDED_PER_OPEN = 16


class OpenItems:
    """Counts items between claim and completion, without those whose chunk waits only for others."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.count = 0  # open now
        self._from_reserve = 0  # of these, claimed when there was room for the best lane only
        self._ended = 0  # not counted, although their chunk is not written yet
        self._closed = False
        self._changed = threading.Condition()

    def wait_for_room(self, timeout_seconds: float | None = None) -> Sequence[Lane]:
        """Block while full; answers the lanes that may be claimed from, none once `close` was called."""
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
        """Block while only the best lane has room, or none, but no longer than this, nor after `close`.

        Args:
            timeout_seconds: see there.
            unless: ends the wait, too; it is asked again after `wake`.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self.has_room_in_all_lanes or unless(), timeout_seconds
            )

    def wake(self) -> None:
        """Have who waits ask again."""
        with self._changed:
            self._changed.notify_all()

    def add(self, count: int, *, from_reserve: bool = False) -> None:
        """Items were claimed; `from_reserve`: when there was room for the best lane only."""
        with self._changed:
            self.count += count
            self._from_reserve += count if from_reserve else 0

    def remove(self, count: int, *, from_reserve: bool = False) -> None:
        """Items were completed or given back; the arguments are those of `add`."""
        with self._changed:
            self.count -= count
            self._from_reserve -= count if from_reserve else 0
            self._changed.notify_all()

    @contextmanager
    def making_room(self) -> Iterator[Callable[[int], None]]:
        """Around the time in which the items of a chunk end one after the other.

        Gives a function to tell how many more have ended: they count no longer, so that a chunk with a few
        dead hosts in it does not keep a worker from its work. At the end all count again, until `remove`:
        chunks that wait to be written must not pile up.
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
                    if self.has_room_in_all_lanes:  # else nobody's wait is over: it would be for every batch
                        self._changed.notify_all()

        try:
            yield make_room
        finally:
            with self._changed:
                is_over = True
                self._ended -= ended
                self.count += ended

    def close(self) -> None:
        """Nothing may be claimed any more; whoever waits goes on with no lane."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def has_room_in_all_lanes(self) -> bool:
        """Whether chunks of any lane may be claimed."""
        return self.count < self.limit * (1 - RESERVED_SHARE)
