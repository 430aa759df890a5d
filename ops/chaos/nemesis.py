"""Carries a schedule out: begins each fault when its time has come and its target can be struck."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from ops.chaos.faults import Fault, System, fault_of
from ops.chaos.history import History
from ops.chaos.schedule import PlannedFault
from ops.chaos.soak import Sample, sample

_TICK_SECONDS = 0.02


class Nemesis:
    """Runs in the thread that started the servers, and tends the fleet meanwhile."""

    def __init__(
        self, schedule: Iterable[PlannedFault], system: System, is_enough: Callable[[], bool] = lambda: False
    ) -> None:
        """Nothing is broken yet.

        Args:
            schedule: the faults, by time.
            system: what they are done to.
            is_enough: ends the run early.
        """
        self._is_enough = is_enough
        self._system = system
        self._history: History = system.history
        self._pending = [(plan, fault_of(plan, system)) for plan in schedule]
        self._lasting: list[tuple[float, PlannedFault, Fault]] = []
        self._began_at = 0.0

    def run(self) -> None:
        """Returns when all faults are over, or it is enough."""
        self._began_at = self._history.note("faults_begin")
        while (self._pending or self._lasting) and not self._is_enough():
            self._system.fleet.tend()
            self._end_what_is_over()
            self._begin_what_is_due()
            time.sleep(_TICK_SECONDS)
        self._history.note("faults_end")

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Tend the fleet until something is so; False if it was not in time, or it is enough."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() >= deadline or self._is_enough():
                return False
            self._system.fleet.tend()
            time.sleep(_TICK_SECONDS)
        return True

    def soak(self, seconds: float) -> list[Sample]:
        """Let the system work, and look at its workers now and then."""
        period = max(0.5, min(10.0, seconds / 100))
        samples: list[Sample] = []
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            self.wait_for(lambda: False, period)
            for slot in self._system.fleet.slots:
                worker = slot.worker
                if worker is not None and worker.pid is not None and worker.is_ready:
                    seen = sample(worker.number, worker.pid, self._history.now())
                    samples += [seen] if seen else []
        return samples

    def _now(self) -> float:
        return self._history.now() - self._began_at

    def _end_what_is_over(self) -> None:
        for ends_at, plan, fault in list(self._lasting):
            if self._now() >= ends_at:
                fault.end()
                self._history.note("fault_ended", number=plan.number, kind=plan.kind)
                self._lasting.remove((ends_at, plan, fault))

    def _begin_what_is_due(self) -> None:
        """One after the other; what cannot begin yet does not hold up the others."""
        for plan, fault in list(self._pending):
            if plan.at_seconds > self._now():
                return
            if not fault.is_possible:
                continue
            self._history.note(
                "fault", number=plan.number, kind=plan.kind, slot=plan.slot, point=plan.variant
            )
            fault.begin()
            self._pending.remove((plan, fault))
            if plan.seconds:
                self._lasting.append((self._now() + plan.seconds, plan, fault))
            else:
                self._history.note("fault_ended", number=plan.number, kind=plan.kind)
