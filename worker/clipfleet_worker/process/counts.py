"""Counts of a process: how busy its steps are, and the hits and misses of its caches.

Work is counted per slice and batch, not per item.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Busy:
    """How busy a step is, for all jobs of this process."""

    seconds: float  # of work so far, including work in progress
    capacity_seconds: float  # of work that was possible

    def since(self, earlier: Busy) -> Busy:
        """The difference to an earlier reading."""
        return Busy(self.seconds - earlier.seconds, self.capacity_seconds - earlier.capacity_seconds)


class BusyMeter:
    """A context manager around each piece of work; several threads may be inside."""

    def __init__(self, capacity: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Start to measure.

        Args:
            capacity: pieces of work that may run at a time.
            monotonic: clock, in seconds.
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
        """Read the present values."""
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
        """Count a request."""
        with self._lock:
            if hit:
                self.hits += 1
            else:
                self.misses += 1
