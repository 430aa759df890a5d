"""Ends a process in which a loop hangs: a thread cannot be killed, and leases make an exit cheap.

Each loop publishes its phase: what it does, since when, and for how long at most. Over a limit the watchdog
writes the stacks of all threads to the log and ends the process; its supervisor starts a new one. Idle loops
and waits for Redis have no limit.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from clipfleet_worker.process.loop import Loop
from clipfleet_worker.process.standstill import Standstill

log = logging.getLogger(__name__)

EXIT_HUNG = 70  # exit code of a process that was ended because it hung
LOAD_LIMIT_SECONDS = 900.0  # of loading a model, and of a forward pass, which may compile first

_LOOK_SECONDS = 1.0
_STANDSTILL_SECONDS = 120.0  # without any check
_PAUSE_SECONDS = 10.0  # between two checks, which the watchdog makes every second


class RunningTime:
    """Monotonic seconds without the pauses of the process, its container or its machine.

    So a pause exhausts no limit. Must be called every second; any thread may call it.
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


@dataclass(frozen=True, slots=True)
class Phase:
    """What a loop does."""

    loop: str
    name: str
    since: float  # seconds of `RunningTime`
    limit_seconds: float | None = None  # None: unlimited

    @property
    def is_idle(self) -> bool:
        """Whether it has no limit."""
        return self.limit_seconds is None


class Pulse:
    """Publishes the phase of one loop. Written by that loop, read by others."""

    def __init__(self, loop: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._loop = loop
        self._monotonic = monotonic
        # Replaced in one assignment, since others read it. Not a `Phase`, which is slower to make: some loops
        # change phases with every image, and the watchdog reads once a second.
        self._now: tuple[str, float, float | None] = ("idle", monotonic(), None)

    @property
    def phase(self) -> Phase:
        """The present phase."""
        return Phase(self._loop, *self._now)

    def enter(self, phase: str, limit_seconds: float | None = None) -> None:
        """Begin a phase, which ends within the limit or hangs."""
        self._now = (phase, self._monotonic(), limit_seconds)

    def rest(self, phase: str = "idle") -> None:
        """Begin a phase without a limit: the loop waits for work or for another service."""
        self.enter(phase)

    @contextmanager
    def during(self, phase: str, limit_seconds: float) -> Iterator[None]:
        """Be in a phase inside the context, and idle after it."""
        self.enter(phase, limit_seconds)
        try:
            yield
        finally:
            self.rest()


class Watchdog(Loop):
    """Checks all pulses every second. Thread-safe, except for `check`."""

    def __init__(
        self,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        exit_process: Callable[[int], None] = os._exit,
        dump_stacks: Callable[[], None] = lambda: faulthandler.dump_traceback(sys.stderr, all_threads=True),
        look_seconds: float = _LOOK_SECONDS,
        standstill_seconds: float = _STANDSTILL_SECONDS,
    ) -> None:
        """Prepare; nothing is watched yet.

        Args:
            monotonic: clock, in seconds.
            exit_process: called with `EXIT_HUNG`; does not return in production.
            dump_stacks: writes the stacks of all threads to the log.
            look_seconds: between two checks.
            standstill_seconds: without a check, after which the process ends, unless it was paused.
        """
        self.running_time = RunningTime(monotonic)
        self._exit_process = exit_process
        self._dump_stacks = dump_stacks
        self._pulses: dict[int, Pulse] = {}
        self._sources: list[Callable[[], Iterable[Phase]]] = []
        self._lock = threading.Lock()
        self._standstill = Standstill(standstill_seconds, look_seconds)
        super().__init__("watchdog", look_seconds)

    def pulse(self, loop: str) -> Pulse:
        """Make a pulse, which is watched as long as the process lives."""
        pulse = Pulse(loop, self.running_time)
        with self._lock:
            self._pulses[id(pulse)] = pulse
        return pulse

    @contextmanager
    def activity(self, name: str, phase: str, limit_seconds: float) -> Iterator[Pulse]:
        """Watch an activity that ends with the context, such as the load of a model. May be nested."""
        pulse = self.pulse(name)
        pulse.enter(phase, limit_seconds)
        try:
            yield pulse
        finally:
            with self._lock:
                del self._pulses[id(pulse)]

    def watch(self, source: Callable[[], Iterable[Phase]]) -> None:
        """Read further phases from `source` at every check."""
        with self._lock:
            self._sources.append(source)

    def phases(self) -> list[Phase]:
        """The phases of all loops and sources."""
        with self._lock:
            sources = list(self._sources)
        return self.loop_phases() + [phase for source in sources for phase in source()]

    def loop_phases(self) -> list[Phase]:
        """The phases of the loops alone, whose names are few."""
        with self._lock:
            pulses = list(self._pulses.values())
        return [pulse.phase for pulse in pulses]

    def overdue(self) -> list[Phase]:
        """Phases over their limits."""
        now = self.running_time()
        return [
            phase
            for phase in self.phases()
            if phase.limit_seconds is not None and now - phase.since > phase.limit_seconds
        ]

    def check(self) -> None:
        """End the process if a phase is over its limit. Called by the thread."""
        overdue = self.overdue()
        if not overdue:
            return
        for phase in overdue:
            log.critical(
                "%s hangs: %s takes more than %g s; the process ends, its leases expire",
                phase.loop,
                phase.name,
                phase.limit_seconds,
                extra={"action": "loop_hangs"},
            )
        self._dump_stacks()
        self._exit_process(EXIT_HUNG)

    def start(self) -> None:
        """Start the thread."""
        self._standstill.start()
        super().start()

    def stop(self) -> None:
        """End the thread."""
        was_started = self._thread.is_alive()
        super().stop()
        if was_started:
            self._standstill.stop()

    def run_once(self) -> None:
        """Report that threads run, and check."""
        self._standstill.note()
        self.check()
