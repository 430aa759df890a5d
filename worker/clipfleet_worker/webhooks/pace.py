"""How many requests a worker sends to one endpoint at a time.

More with each success, one at a time after a failure of the endpoint as a whole: no answer, or a status that
says so. Between such failures it gets a pause, so that a receiver that is away is asked seldom, however many
deliveries wait for it, and gets them all at once when it is back.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from clipfleet.webhooks.schedule import THROTTLING_STATUSES
from clipfleet_worker.webhooks.poster import Answer

FIRST_REQUESTS, MOST_REQUESTS = 2, 16
MAX_PAUSE_SECONDS = 30.0
MAX_ASKED_PAUSE_SECONDS = 3600.0  # that a receiver may ask for by `Retry-After`
_FIRST_PAUSE_SECONDS = 1.0


class Pace:
    """Of one endpoint; belongs to one event loop."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._limit = FIRST_REQUESTS
        self._failures = 0  # of the endpoint as a whole, one after the other
        self.in_flight = 0  # requests
        self.paused_until = 0.0  # monotonic seconds

    @property
    def room(self) -> int:
        """How many more requests may be sent now."""
        return 0 if self._is_paused else max(0, self._limit - self.in_flight)

    @property
    def _is_paused(self) -> bool:
        return self._monotonic() < self.paused_until

    def note(self, answer: Answer) -> None:
        """Take an answer into account."""
        if answer.is_delivered:
            self._failures = 0
            self._limit = min(MOST_REQUESTS, 2 * self._limit)
        elif answer.status is None or answer.status in THROTTLING_STATUSES:
            self._limit = 1
            self._pause(answer.retry_after_seconds or 0.0)

    def _pause(self, asked_seconds: float) -> None:
        if not self._is_paused:  # else: requests that were sent together have failed together
            self._failures += 1
        pause = min(MAX_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** min(self._failures - 1, 10))
        pause = max(pause, min(asked_seconds, MAX_ASKED_PAUSE_SECONDS))
        self.paused_until = max(self.paused_until, self._monotonic() + pause)
