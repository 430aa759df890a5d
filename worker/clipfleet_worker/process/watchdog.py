"""Ends a process in which a loop hangs: a thread cannot be killed, and leases make an exit cheap.

Each loop publishes what it is doing, since when, and how long that may take. The watchdog compares, and
beyond a limit writes the stacks of all threads to the log and ends the process; its supervisor starts a new
one. To be idle, or to wait for a Redis that is away, has no limit.
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

EXIT_HUNG = 70  # the exit code of a process that was ended because it got on no more
LOAD_LIMIT_SECONDS = 900.0  # of loading a model, and of a forward pass, which may have to compile first

_LOOK_SECONDS = 1.0
_STANDSTILL_SECONDS = 120.0  # without a look at all
_PAUSE_SECONDS = 10.0  # between two looks, of which the watchdog takes one a second


class RunningTime:
    """Seconds that this process could use; may be asked by any thread, and has to be asked every second.

    While the process, its container or the machine is paused, it stands still: a pause ends with limits that
    are not over, and what was interrupted by it does not hang.
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
    """What a loop is doing."""

    loop: str
    name: str
    since: float  # seconds of `RunningTime`
    limit_seconds: float | None = None  # None: it may take any time

    @property
    def is_idle(self) -> bool:
        """Whether it may take any time."""
        return self.limit_seconds is None


class Pulse:
    """Where one loop publishes its phase. Written by that loop, read by others."""

    def __init__(self, loop: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._loop = loop
        self._monotonic = monotonic
        # Changed in one assignment, for others read it meanwhile. No `Phase`: to make one takes longer, and
        # loops that go through phases by the image are watched once a second.
        self._now: tuple[str, float, float | None] = ("idle", monotonic(), None)

    @property
    def phase(self) -> Phase:
        """The present phase."""
        return Phase(self._loop, *self._now)

    def enter(self, phase: str, limit_seconds: float | None = None) -> None:
        """A phase begins that ends within the limit, or hangs."""
        self._now = (phase, self._monotonic(), limit_seconds)

    def rest(self, phase: str = "idle") -> None:
        """The loop waits for work, or for the world."""
        self.enter(phase)

    @contextmanager
    def during(self, phase: str, limit_seconds: float) -> Iterator[None]:
        """Be in a phase for the time of the context, then idle."""
        self.enter(phase, limit_seconds)
        try:
            yield
        finally:
            self.rest()


class Watchdog(Loop):
    """Looks at all pulses once a second. Everything but `check` may be called from any thread."""

    def __init__(
        self,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        exit_process: Callable[[int], None] = os._exit,
        dump_stacks: Callable[[], None] = lambda: faulthandler.dump_traceback(sys.stderr, all_threads=True),
        look_seconds: float = _LOOK_SECONDS,
        standstill_seconds: float = _STANDSTILL_SECONDS,
    ) -> None:
        """Nothing is watched yet.

        Args:
            monotonic: seconds that only go forward.
            exit_process: called with `EXIT_HUNG`; does not return in production.
            dump_stacks: writes the stacks of all threads where the log goes.
            look_seconds: between two looks.
            standstill_seconds: without a look the process ends, too, unless it was paused.
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
        """A new pulse, watched as long as the process lives."""
        pulse = Pulse(loop, self.running_time)
        with self._lock:
            self._pulses[id(pulse)] = pulse
        return pulse

    @contextmanager
    def activity(self, name: str, phase: str, limit_seconds: float) -> Iterator[Pulse]:
        """Watch something that ends with the context: one decoding, one load. Nesting is allowed."""
        pulse = self.pulse(name)
        pulse.enter(phase, limit_seconds)
        try:
            yield pulse
        finally:
            with self._lock:
                del self._pulses[id(pulse)]

    def watch(self, source: Callable[[], Iterable[Phase]]) -> None:
        """Ask `source` for further phases at every look."""
        with self._lock:
            self._sources.append(source)

    def phases(self) -> list[Phase]:
        """What all loops are doing now."""
        with self._lock:
            sources = list(self._sources)
        return self.loop_phases() + [phase for source in sources for phase in source()]

    def loop_phases(self) -> list[Phase]:
        """Likewise without what `watch` has added: the names of these loops are few."""
        with self._lock:
            pulses = list(self._pulses.values())
        return [pulse.phase for pulse in pulses]

    def overdue(self) -> list[Phase]:
        """Phases beyond their limit."""
        now = self.running_time()
        return [
            phase
            for phase in self.phases()
            if phase.limit_seconds is not None and now - phase.since > phase.limit_seconds
        ]

    def check(self) -> None:
        """Look once: end the process if something hangs. Called by the thread."""
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
        """Look, and say that threads run."""
        self._standstill.note()
        self.check()
