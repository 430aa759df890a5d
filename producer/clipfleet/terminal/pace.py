"""Recent rate, time left and bottleneck of a job, from snapshots. Reads no clock.

Items count once they are settled in a chunk in progress. Workers of older versions report nothing: then rows
arrive a chunk at a time, so the recent window spans several changes, however long they take. Where snapshots
are not enough (at the start, after a pause, in a standstill) the answer is None, never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass

from clipfleet.contract.bottleneck import Limit
from clipfleet.contract.jobs import JobState
from clipfleet.ledger.status import JobStatus

_LATELY_SECONDS = 60.0
_STEPS = 3  # the window spans at least this many changes
_MIN_SECONDS = 3.0
_STANDSTILL_SECONDS = 30.0  # without a row
_STANDSTILL_STEPS = 5.0  # or this many times the usual gap between rows
_MOST_SECONDS_LEFT = 365 * 86_400.0


@dataclass(frozen=True, slots=True)
class _Look:
    """A snapshot whose counts differ from the previous one."""

    at: float  # monotonic seconds of the caller
    status: JobStatus


class Pace:
    """Rate of one job. Feed it every snapshot, with monotonic times."""

    def __init__(self) -> None:
        self._looks: list[_Look] = []
        self._is_mid_chunk = False  # the first snapshot came mid-chunk, so its start is unknown

    def note(self, now: float, status: JobStatus) -> None:
        """Record a snapshot taken now."""
        if status.state not in (JobState.SUBMITTING, JobState.RUNNING):
            self._looks.clear()
            return
        if self._looks:
            last = self._looks[-1].status
            if status.generation != last.generation or status.done < last.done:
                self._looks.clear()
            elif status.done == last.done:
                return
        if not self._looks:
            self._is_mid_chunk = _ran(status) > 0
        elif self._is_mid_chunk or self._stands_still(now):
            self._looks.clear()  # the window starts with these rows
            self._is_mid_chunk = False
        self._looks.append(_Look(now, status))
        del self._looks[: self._first(now)]

    def rows_per_second(self, now: float) -> float | None:
        """Recent rate of rows that were run, without those that a retry kept."""
        seconds = self._seconds(now)
        if seconds is None:
            return None
        return (_ran(self._looks[-1].status) - _ran(self._looks[0].status)) / seconds

    def seconds_left(self, now: float) -> float | None:
        """Time until all rows are written, at the recent rate; None until the job is sealed."""
        seconds = self._seconds(now)
        if seconds is None or not self._looks[-1].status.sealed:
            return None
        first, last = self._looks[0].status, self._looks[-1].status
        # Includes rows that a retry kept: they are written with the others of their chunk.
        left = last.open * seconds / (last.done - first.done)
        passed = now - self._looks[-1].at
        return max(0.0, left - min(passed, self._gap)) if left < _MOST_SECONDS_LEFT else None

    def limit(self, status: JobStatus) -> Limit | None:
        """Recent bottleneck of the job, or the overall one if the window is too short."""
        lately = status.limit_since(self._looks[0].status) if len(self._looks) > 1 else None
        return lately or status.limit

    @property
    def _gap(self) -> float:
        """Mean seconds between changes."""
        return (self._looks[-1].at - self._looks[0].at) / (len(self._looks) - 1)

    def _stands_still(self, now: float) -> bool:
        """Whether no row has arrived for much longer than the usual gap."""
        if len(self._looks) < 2:
            return False
        return now - self._looks[-1].at > max(_STANDSTILL_SECONDS, _STANDSTILL_STEPS * self._gap)

    def _seconds(self, now: float) -> float | None:
        """Seconds from the first to the last snapshot, plus any unusual delay since."""
        if len(self._looks) < 2:
            return None
        if self._stands_still(now):
            return None
        since = now - self._looks[-1].at
        seconds = self._looks[-1].at - self._looks[0].at + max(0.0, since - self._gap)
        return seconds if seconds >= _MIN_SECONDS else None

    def _first(self, now: float) -> int:
        """Index of the first snapshot of the window."""
        recent = sum(look.at >= now - _LATELY_SECONDS for look in self._looks)
        return max(0, len(self._looks) - 1 - max(recent, _STEPS))


def _ran(status: JobStatus) -> int:
    return status.ran + status.settled
