"""How many requests a worker sends to one endpoint at a time.

Twice as many after each success, half as many after a failure of the endpoint as a whole: no answer, or a
status that says so. If such failures follow one another, or the receiver asks for it, the endpoint gets a
pause, so that a receiver that is away is asked seldom, however many deliveries wait for it, and gets them all
when it is back.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from clipfleet.webhooks.schedule import THROTTLING_STATUSES, TOO_MANY_REQUESTS
from clipfleet_worker.webhooks.poster import Answer

FIRST_REQUESTS, MOST_REQUESTS = 2, 16
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 1.0, 30.0
MAX_ASKED_PAUSE_SECONDS = 3600.0  # that a receiver may ask for by `Retry-After`


class Pace:
    """Of one endpoint; belongs to one event loop."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._limit = FIRST_REQUESTS
        self._failures = 0  # of the endpoint as a whole, one after another
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
            self._limit = max(1, self._limit // 2)
            self._note_failure(answer)

    def _note_failure(self, answer: Answer) -> None:
        if not self._is_paused:  # else: requests that were sent together have failed together
            self._failures += 1
        pause = 0.0
        if self._failures > 1 or answer.status == TOO_MANY_REQUESTS:
            pause = min(MAX_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(max(self._failures - 2, 0), 10))
        asked = min(answer.retry_after_seconds or 0.0, MAX_ASKED_PAUSE_SECONDS)
        self.paused_until = max(self.paused_until, self._monotonic() + max(pause, asked))
