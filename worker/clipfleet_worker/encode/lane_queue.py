"""Work that waits in lanes: the best lane first, but none waits for ever."""

from __future__ import annotations

import itertools
from collections import deque
from typing import Generic, TypeVar

from clipfleet.contract.jobs import Lane

T = TypeVar("T")

MOST_PASSED_OVER = 8  # by better lanes, before the oldest of all lanes goes


class LaneQueue(Generic[T]):
    """First in, first out within a lane. Not thread-safe."""

    def __init__(self) -> None:
        self._waiting: dict[Lane, deque[tuple[int, T]]] = {lane: deque() for lane in Lane}
        self._numbers = itertools.count()
        self._passed_over = 0

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def put(self, lane: Lane, work: T) -> None:
        """Add work at the end of a lane."""
        self._waiting[lane].append((next(self._numbers), work))

    @property
    def best_lane(self) -> Lane | None:
        """The best lane that has work."""
        return next((lane for lane in Lane if self._waiting[lane]), None)

    def take(self) -> T:
        """Remove the next work: that of the best lane, after some of it the oldest of all.

        Raises:
            IndexError: there is none.
        """
        lanes = [lane for lane in Lane if self._waiting[lane]]
        if not lanes:
            raise IndexError("no work waits")
        oldest = min(lanes, key=lambda lane: self._waiting[lane][0][0])
        is_passed_over = oldest is not lanes[0] and self._passed_over < MOST_PASSED_OVER
        self._passed_over = self._passed_over + 1 if is_passed_over else 0
        return self._waiting[lanes[0] if is_passed_over else oldest].popleft()[1]
