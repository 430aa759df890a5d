"""How much a worker takes on: open items are counted before a claim, waiting bytes before a fetch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from clipfleet.contract import Lane

# Of the open items, and of the waiting bytes, kept for the lane `high` whatever the others have taken.
_RESERVED_SHARE = 0.1
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
        return (Lane.HIGH,) if self._from_reserve < self.limit * _RESERVED_SHARE else ()

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
        return self.count < self.limit * (1 - _RESERVED_SHARE)


class WaitingBytes:
    """Counts fetched bytes until they are decoded; closed while they are too many, last for the best lane."""

    def __init__(self, limit: int) -> None:
        # By whether it is that of the best lane.
        self._limits = {False: limit, True: limit + int(limit * _RESERVED_SHARE)}
        self.count = 0  # waiting now
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opened: dict[bool, asyncio.Event] = {}

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Called once, in the loop that will wait."""
        self._loop, self._opened = loop, {is_best: asyncio.Event() for is_best in (False, True)}
        for opened in self._opened.values():
            opened.set()

    @property
    def is_open(self) -> bool:
        """Whether a fetch of any lane may begin."""
        return self._is_open(is_best=False)

    def _is_open(self, *, is_best: bool) -> bool:
        return self.count < self._limits[is_best]

    @property
    def limit(self) -> int:
        """Of waiting bytes."""
        return self._limits[False]

    async def wait_open(self, lane: Lane = Lane.NORMAL) -> None:
        """Wait until a fetch may begin."""
        if not self._opened:
            raise RuntimeError("bind comes first")
        is_best = lane is Lane.HIGH
        while not self._is_open(is_best=is_best):
            await self._opened[is_best].wait()

    def add(self, count: int) -> None:
        """Bytes arrived; to be called in the loop."""
        with self._lock:
            self.count += count
            for is_best, opened in self._opened.items():
                if not self._is_open(is_best=is_best):
                    opened.clear()

    def remove(self, count: int) -> None:
        """Bytes were decoded or dropped; from any thread."""
        with self._lock:
            was_open = self.is_open
            self.count -= count
            wake = not was_open and self._is_open(is_best=True)
        if wake and self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        """Wake who waits, unless the room is gone again: with the event set, `wait_open` would spin."""
        with self._lock:
            for is_best, opened in self._opened.items():
                if self._is_open(is_best=is_best):
                    opened.set()
