"""Restarts child processes with back-off, polled from the supervisor's loop. Knows neither Redis nor CLIP."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from clipfleet.errors import ClipfleetError
from clipfleet_worker.machine.child import Child


@dataclass(frozen=True)
class RestartPolicy:
    """How long to wait before a restart."""

    first_seconds: float = 0.5  # after the first death
    longest_seconds: float = 30.0  # the wait doubles up to this
    reset_seconds: float = 60.0  # the death of a child that lived this long counts as its first

    def delay(self, previous_seconds: float, lived_seconds: float) -> float:
        """Seconds to wait now.

        Args:
            previous_seconds: the wait before the process that just died; 0 if there was none.
            lived_seconds: how long that process lived.
        """
        if previous_seconds <= 0 or lived_seconds >= self.reset_seconds:
            return self.first_seconds
        return min(previous_seconds * 2, self.longest_seconds)


class Restarter:
    """Restarts a child whenever it dies, with exponential back-off."""

    def __init__(
        self,
        child: Child,
        start: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Watch a child that has just been started.

        Args:
            child: to restart.
            start: restarts it, without a wait; default `child.start`.
            clock: monotonic seconds.
        """
        self.child = child
        self._start = start or child.start
        self._policy = RestartPolicy()
        self._clock = clock
        self._started = clock()
        self._delay = 0.0
        self._due: float | None = None  # the time of the restart, while it is dead
        self._returning = False  # restarted, and not ready yet

    def poll(self) -> str | None:
        """Check the child once; never waits.

        Returns:
            A message for the user, if anything happened.
        """
        if self._due is not None:
            return self._start_again() if self._clock() >= self._due else None
        if not self.child.alive:
            return self._schedule(f"ended ({self.child.ending()})", self.child.tail())
        if self._returning and self.child.probe():
            self._returning = False
            return f"{self.child.name} is back"
        return None

    def _start_again(self) -> str | None:
        self._due = None
        self._started = self._clock()
        self._returning = True
        try:
            self._start()
        except (OSError, ClipfleetError) as error:
            return self._schedule("could not be restarted", str(error))
        return None

    def _schedule(self, what: str, details: str) -> str:
        now = self._clock()
        self._delay = self._policy.delay(self._delay, now - self._started)
        self._due = now + self._delay
        last_line = f": {details.splitlines()[-1].strip()}" if details else ""
        return f"{self.child.name} {what}, restarting it in {self._delay:g} s{last_line}"
