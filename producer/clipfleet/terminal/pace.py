"""How fast a job goes lately, when it will be done, and what limits it, from snapshots. No clock of its own.

Rows come a chunk at a time, so what came lately is a matter of several chunks, however long they take. Where
snapshots do not tell, the answer is None, never a guess: at the start, after a pause, in a standstill.
"""

from __future__ import annotations

from dataclasses import dataclass

from clipfleet.contract.bottleneck import Limit
from clipfleet.contract.jobs import JobState
from clipfleet.ledger.status import JobStatus

_LATELY_SECONDS = 60.0
_STEPS = 3  # or as long as so many changes took
_MIN_SECONDS = 3.0
_STANDSTILL_SECONDS = 30.0  # without a row
_STANDSTILL_STEPS = 5.0  # or so many times as long as rows took to come before
_MOST_SECONDS_LEFT = 365 * 86_400.0


@dataclass(frozen=True, slots=True)
class _Look:
    """A snapshot that showed other counts than the one before."""

    at: float  # seconds on the clock of whoever looks
    status: JobStatus


class Pace:
    """Show it every snapshot of one job; the times that it is given only go forward."""

    def __init__(self) -> None:
        self._looks: list[_Look] = []
        self._is_mid_chunk = False  # at the first look rows were under way, nobody knows since when

    def note(self, now: float, status: JobStatus) -> None:
        """A snapshot, taken now."""
        if status.state not in (JobState.SUBMITTING, JobState.RUNNING):
            self._looks.clear()
            return
        if self._looks:
            last = self._looks[-1].status
            if status.generation != last.generation or _rows(status) < _rows(last):
                self._looks.clear()
            elif _rows(status) == _rows(last):
                return
        if not self._looks:
            self._is_mid_chunk = status.ran > 0
        elif self._is_mid_chunk or self._stands_still(now):
            self._looks.clear()  # time begins with these rows
            self._is_mid_chunk = False
        self._looks.append(_Look(now, status))
        del self._looks[: self._first(now)]

    def rows_per_second(self, now: float) -> float | None:
        """Rows that were run lately; those that a retry has kept are none of them."""
        seconds = self._seconds(now)
        if seconds is None:
            return None
        return (self._looks[-1].status.ran - self._looks[0].status.ran) / seconds

    def seconds_left(self, now: float) -> float | None:
        """Until all rows are there, at the rate of lately; None also while not all is submitted."""
        seconds = self._seconds(now)
        if seconds is None or not self._looks[-1].status.sealed:
            return None
        first, last = self._looks[0].status, self._looks[-1].status
        # With the rows that a retry has kept: they come with the others of their chunk.
        left = last.open * seconds / (_rows(last) - _rows(first))
        passed = now - self._looks[-1].at
        return max(0.0, left - min(passed, self._gap)) if left < _MOST_SECONDS_LEFT else None

    def limit(self, status: JobStatus) -> Limit | None:
        """What limits the job lately, or where that tells too little, so far."""
        lately = status.limit_since(self._looks[0].status) if len(self._looks) > 1 else None
        return lately or status.limit

    @property
    def _gap(self) -> float:
        """How long it takes from one change to the next."""
        return (self._looks[-1].at - self._looks[0].at) / (len(self._looks) - 1)

    def _stands_still(self, now: float) -> bool:
        """Whether no row has come for much longer than it took before."""
        if len(self._looks) < 2:
            return False
        return now - self._looks[-1].at > max(_STANDSTILL_SECONDS, _STANDSTILL_STEPS * self._gap)

    def _seconds(self, now: float) -> float | None:
        """How long it took from the first of the looks to the last, with what is unusual since then."""
        if len(self._looks) < 2:
            return None
        if self._stands_still(now):
            return None
        since = now - self._looks[-1].at
        seconds = self._looks[-1].at - self._looks[0].at + max(0.0, since - self._gap)
        return seconds if seconds >= _MIN_SECONDS else None

    def _first(self, now: float) -> int:
        """Number of the look from which on it is lately."""
        recent = sum(look.at >= now - _LATELY_SECONDS for look in self._looks)
        return max(0, len(self._looks) - 1 - max(recent, _STEPS))


def _rows(status: JobStatus) -> int:
    return status.ok + status.failed
