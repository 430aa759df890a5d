"""A clock for limits: while the process, its container or the machine is paused, it stands still."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_PAUSE_SECONDS = 10.0  # between two looks, of which the watchdog takes one a second


class RunningTime:
    """Seconds that this process could use; may be asked by any thread, and has to be asked every second.

    A pause ends with limits that are not over: what was interrupted by it does not hang.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._last = monotonic()
        self._paused_seconds = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        """Monotonic seconds, without the pauses."""
        with self._lock:
            now = self._monotonic()
            passed, self._last = now - self._last, now
            if passed > _PAUSE_SECONDS:
                self._paused_seconds += passed
            return now - self._paused_seconds
