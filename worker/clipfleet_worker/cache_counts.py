"""How often a cache had what it was asked for."""

from __future__ import annotations

import threading


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
