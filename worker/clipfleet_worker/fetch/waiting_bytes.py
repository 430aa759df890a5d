"""Bounds the fetched bytes that wait to be decoded: no fetch begins while they are too many."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

from clipfleet.contract.jobs import Lane

# Share of open items and of waiting bytes that is reserved for the lane `high`.
RESERVED_SHARE = 0.1


class WaitingBytes:
    """Counts fetched bytes until they are decoded; closed at a limit, which is higher for the best lane."""

    def __init__(self, limit: int) -> None:
        # By whether it is the best lane's.
        self._limits = {False: limit, True: limit + int(limit * RESERVED_SHARE)}
        self.count = 0  # waiting now
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opened: dict[bool, asyncio.Event] = {}

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Set the event loop in which fetches wait; called once, in that loop."""
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
        """Upper bound of waiting bytes, the reserve of the best lane excluded."""
        return self._limits[False]

    async def wait_open(self, lane: Lane = Lane.NORMAL) -> None:
        """Wait until a fetch may begin."""
        if not self._opened:
            raise RuntimeError("bind comes first")
        is_best = lane is Lane.HIGH
        while not self._is_open(is_best=is_best):
            await self._opened[is_best].wait()

    def add(self, count: int) -> None:
        """Count bytes that arrived; called in the loop."""
        with self._lock:
            self.count += count
            for is_best, opened in self._opened.items():
                if not self._is_open(is_best=is_best):
                    opened.clear()

    def remove(self, count: int) -> None:
        """Discount bytes that were decoded or dropped; from any thread."""
        with self._lock:
            was_open = self.is_open
            self.count -= count
            wake = not was_open and self._is_open(is_best=True)
        if wake and self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: no fetch waits
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        """Wake waiting fetches, unless the limit is reached again: `wait_open` would spin."""
        with self._lock:
            for is_best, opened in self._opened.items():
                if self._is_open(is_best=is_best):
                    opened.set()
