"""Counts how the chunks of this process and their items end: once per chunk, never per item."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from enum import StrEnum

from clipfleet.contract.parts import ItemStatus, PartCounts

CHUNK_SECONDS = (1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 180.0, 300.0, 600.0, 1800.0)  # bounds of the histogram


class ChunkEnd(StrEnum):
    """How a claimed chunk ended in this process."""

    DONE = "done"  # its part is in place and the ledger has counted it
    LATE = "late"  # its part is in place, but another worker was first, or the job is over
    WAITED = "waited"  # released: the store, the source, Redis or device memory was away
    DRAINED = "drained"  # released: the worker drains, or another worker has to process it
    LOST = "lost"  # its lease has expired
    CANCELLED = "cancelled"  # its job was cancelled
    FAILED = "failed"  # a bug of ours, or an unusable output


@dataclass(slots=True)
class ChunkTotals:
    """Since the process began."""

    ends: Counter[ChunkEnd] = field(default_factory=Counter)
    # Of complete chunks, by status and code ("" for ok).
    items: Counter[tuple[ItemStatus, str]] = field(default_factory=Counter)
    work_seconds: dict[str, float] = field(default_factory=dict)  # working time, summed over threads
    # Chunks by time from claim to end: up to each of `CHUNK_SECONDS`, and above.
    lived: list[int] = field(default_factory=lambda: [0] * (len(CHUNK_SECONDS) + 1))
    lived_seconds: float = 0.0


class ChunkTally:
    """Counts the ends of chunks; called by many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals = ChunkTotals()

    def done(self, rows: PartCounts, work_seconds: Mapping[str, float], lived_seconds: float) -> None:
        """Count a complete chunk.

        Args:
            rows: that were run for it.
            work_seconds: working time by step.
            lived_seconds: since the claim.
        """
        with self._lock:
            self._end(ChunkEnd.DONE, lived_seconds)
            self._totals.items[ItemStatus.OK, ""] += rows.ok
            for code, count in rows.codes.items():
                self._totals.items[ItemStatus.FAILED, code] += count
            by_step = self._totals.work_seconds
            for step, seconds in work_seconds.items():
                by_step[step] = by_step.get(step, 0.0) + seconds

    def ended(self, end: ChunkEnd, lived_seconds: float) -> None:
        """Count a chunk that has ended in another way."""
        with self._lock:
            self._end(end, lived_seconds)

    def totals(self) -> ChunkTotals:
        """A copy of the counts."""
        with self._lock:
            return deepcopy(self._totals)

    def _end(self, end: ChunkEnd, lived_seconds: float) -> None:
        self._totals.ends[end] += 1
        self._totals.lived[bisect_left(CHUNK_SECONDS, lived_seconds)] += 1
        self._totals.lived_seconds += lived_seconds
