"""What a process counts: how much of what could work does work, and how often a cache had what was asked for.

Work is counted where slices and batches begin and end, not by items.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Busy:
    """A look at a step, of this process and whatever job."""

    seconds: float  # of work so far, what is under way included
    capacity_seconds: float  # there could have been

    def since(self, earlier: Busy) -> Busy:
        """What came after an earlier look."""
        return Busy(self.seconds - earlier.seconds, self.capacity_seconds - earlier.capacity_seconds)


class BusyMeter:
    """A context manager around each piece of work; several threads may be inside."""

    def __init__(self, capacity: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Nobody works yet.

        Args:
            capacity: how much may be worked on at a time.
            monotonic: the clock, in seconds.
        """
        self._capacity = capacity
        self._monotonic = monotonic
        self._began = self._last = monotonic()
        self._seconds = 0.0
        self._inside = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self._count()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._count()
            self._inside -= 1

    def read(self) -> Busy:
        """Where it stands now."""
        with self._lock:
            self._count()
            return Busy(self._seconds, (self._last - self._began) * self._capacity)

    def _count(self) -> None:
        now = self._monotonic()
        self._seconds += self._inside * (now - self._last)
        self._last = now


class CacheCounts:
    """Hits and misses of one cache since the process began; written by many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.hits = 0
        self.misses = 0

    def note(self, *, hit: bool) -> None:
        """It was asked once."""
        with self._lock:
            if hit:
                self.hits += 1
            else:
                self.misses += 1
