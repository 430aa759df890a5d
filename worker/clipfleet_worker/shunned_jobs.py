"""Jobs whose output is out of reach here, or away: which of them a worker leaves alone, and for how long."""

from __future__ import annotations

import time
from collections.abc import Callable

_SHUN_JOB_SECONDS = 60.0  # how long a job whose output is out of reach here is left to other workers
_WAIT_SECONDS = (1.0, 15.0)  # the same for an output that is away for now: at first, and at most


class ShunnedJobs:
    """Jobs that this worker leaves to others for a while."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._until: dict[str, float] = {}
        self._waits: dict[str, float] = {}  # how long each job was left alone last, for the world's sake

    def add(self, job_id: str) -> None:
        """Leave this job alone for a minute."""
        self._until[job_id] = self._monotonic() + _SHUN_JOB_SECONDS

    def wait(self, job_id: str) -> None:
        """Leave this job alone for a while, longer each time: else all its chunks would be tried in vain."""
        if job_id not in self.current():
            first, most = _WAIT_SECONDS
            self._waits[job_id] = min(most, 2 * self._waits.get(job_id, first / 2))
            self._until[job_id] = self._monotonic() + self._waits[job_id]

    def forget(self, job_id: str) -> None:
        """A chunk of this job has come through."""
        self._waits.pop(job_id, None)

    def current(self) -> list[str]:
        """Jobs to leave alone now."""
        now = self._monotonic()
        self._until = {job_id: until for job_id, until in self._until.items() if until > now}
        return list(self._until)
