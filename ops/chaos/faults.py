"""How each kind of fault is done to a running system: one class per kind, made from what is planned."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from ops.chaos.armed import IN_PUBLISH
from ops.chaos.customers import Crash, Customers, Overwrite
from ops.chaos.fleet import Fleet, LiveWorker
from ops.chaos.history import History
from ops.chaos.planting import Planter
from ops.chaos.schedule import FREEZE_SECONDS, FaultKind, PlannedFault
from ops.chaos.servers import Servers
from ops.chaos.workload import OutputKind, OverwrittenAfter
from tests.support.s3_front import Fault as S3Fault
from tests.support.s3_front import Rule


@dataclass(frozen=True, slots=True)
class System:
    """What can be broken."""

    servers: Servers
    fleet: Fleet
    customers: Customers
    history: History
    planter: Planter


class Fault(Protocol):
    """One planned fault. All calls come from the thread that started the servers."""

    @property
    def is_possible(self) -> bool:
        """Whether it can begin now."""
        ...

    def begin(self) -> None:
        """Break it."""
        ...

    def end(self) -> None:
        """Mend it; called after the planned seconds."""
        ...


class _Momentary:
    """A fault that needs no end, and can begin at any time."""

    def __init__(self, plan: PlannedFault, system: System) -> None:
        self._plan = plan
        self._system = system

    @property
    def is_possible(self) -> bool:
        return True

    def end(self) -> None:
        """Nothing to mend."""


class _OfWorker(_Momentary):
    """A fault of the worker of a slot, which must be at work."""

    @property
    def is_possible(self) -> bool:
        return self._system.fleet.ready_worker(self._plan.slot) is not None


class Kill(_OfWorker):
    """Its machine loses power."""

    def begin(self) -> None:
        self._system.fleet.end(self._plan.slot, signal.SIGKILL)


class Terminate(_OfWorker):
    """It is asked to leave."""

    def begin(self) -> None:
        self._system.fleet.end(self._plan.slot, signal.SIGTERM)


class CrashAtPoint(_OfWorker):
    """It dies at a named step, as soon as it comes there."""

    @property
    def is_possible(self) -> bool:
        return super().is_possible and not self._system.fleet.is_armed(self._plan.slot)

    def begin(self) -> None:
        plan = self._plan
        self._system.fleet.arm(plan.slot, plan.number, plan.variant, plan.passage)


class FreezeInStep(CrashAtPoint):
    """Its machine sleeps for longer than a lease, as soon as it comes to a named step."""

    def begin(self) -> None:
        plan = self._plan
        self._system.fleet.arm(
            plan.slot, plan.number, plan.variant, plan.passage, freeze_seconds=plan.seconds
        )


class FewDescriptors(_OfWorker):
    """It is started anew with fewer descriptors than it would open, and after a while without that."""

    _DESCRIPTORS = 46  # about as many as it has open when it has something to do

    def begin(self) -> None:
        self._system.fleet.limit(self._plan.slot, self._limits())

    def _limits(self) -> Mapping[str, int]:
        return {"RLIMIT_NOFILE": self._DESCRIPTORS}

    def end(self) -> None:
        self._system.fleet.limit(self._plan.slot, {})


class LittleMemory(FewDescriptors):
    """Likewise with less room for addresses than its threads and batches take."""

    def _limits(self) -> Mapping[str, int]:
        return {"RLIMIT_AS": int(float(self._plan.variant.split()[0]) * 1e9)}


class Zombie(_OfWorker):
    """Its machine sleeps for longer than a lease, then continues."""

    _worker: LiveWorker | None = None

    def begin(self) -> None:
        self._worker = self._system.fleet.freeze(self._plan.slot)

    def end(self) -> None:
        if self._worker is not None:
            self._system.fleet.thaw(self._worker)


class ProducerCrash(_Momentary):
    """A program dies while it submits; the same submit is made again."""

    def begin(self) -> None:
        self._system.customers.crash_next_producer(Crash(self._plan.number, self._plan.variant))


class OverwriteOutput(_Momentary):
    """A job comes into the output of another one, some of whose workers do not know yet that it is over."""

    def begin(self) -> None:
        plan = self._plan
        output, part_format, after = plan.variant.split()
        how = Overwrite(
            number=plan.number,
            output=OutputKind(output),
            part_format=part_format,
            after=OverwrittenAfter(after),
            delay_seconds=plan.seconds,
            freeze=self._freeze,
        )
        self._system.customers.overwrite_next(how)

    def _freeze(self) -> None:
        """Before or behind the sink's last look at its lease."""
        plan, fleet = self._plan, self._system.fleet
        if not fleet.is_armed(plan.slot):
            point = IN_PUBLISH if plan.number % 2 else "mid_write"
            fleet.arm(plan.slot, plan.number, point, 1, freeze_seconds=FREEZE_SECONDS)


class PlantValues(_Momentary):
    """A producer spoils what the ledger has of a job of its own."""

    def begin(self) -> None:
        self._system.planter.plant(self._plan.number, self._plan.variant)


class RedisClock(_Momentary):
    """The server's clock is put right, by as much as it had been wrong."""

    def begin(self) -> None:
        self._system.servers.single_redis.move_clock(int(self._plan.variant.split()[0]))


class RedisTerminate(_Momentary):
    """An orderly restart."""

    def begin(self) -> None:
        self._system.servers.single_redis.terminate()
        self._system.servers.single_redis.start_again()


class RedisKill(_Momentary):
    """The server dies; its append-only file has all it acknowledged."""

    def begin(self) -> None:
        self._system.servers.single_redis.kill()
        self._system.servers.single_redis.start_again()


class RedisFreeze(_Momentary):
    """Nothing passes to or from the server, new connections included; then everything that was sent does."""

    def begin(self) -> None:
        self._system.servers.single_redis.proxy.freeze(new=True)

    def end(self) -> None:
        self._system.servers.single_redis.proxy.thaw()


class RedisHalfOpen(_Momentary):
    """All connections are silent from now on and none is closed; new ones are served."""

    def begin(self) -> None:
        self._system.servers.single_redis.proxy.freeze()


class RedisReset(_Momentary):
    """All connections break."""

    def begin(self) -> None:
        self._system.servers.single_redis.proxy.reset()


class Failover(_Momentary):
    """The primary dies, and the Sentinels make the copy the primary."""

    def begin(self) -> None:
        self._system.servers.sentinel_redis.fail_over()


class S3Outage(_Momentary):
    """The store dies and is restarted after a while."""

    def begin(self) -> None:
        self._system.servers.store.child.kill()

    def end(self) -> None:
        self._system.servers.store.start()


class S3Reset(_Momentary):
    """Connections break: before a request, within it, within the answer, and after the deed was done."""

    _FAULTS = (S3Fault.RESET, S3Fault.RESET_IN_REQUEST, S3Fault.RESET_IN_ANSWER, S3Fault.DONE_BUT_RESET)

    def begin(self) -> None:
        rules = [Rule(fault=fault, chance=0.3, times=4) for fault in self._FAULTS]
        self._system.servers.front.place(*rules)

    def end(self) -> None:
        self._system.servers.front.heal()


class S3SlowDown(S3Reset):
    """The store is overloaded: most requests are refused, some of them though they were carried out."""

    def begin(self) -> None:
        self._system.servers.front.place(
            Rule(fault=S3Fault.SLOW_DOWN, chance=0.5),
            Rule(fault=S3Fault.UNAVAILABLE, chance=0.2),
            Rule(fault=S3Fault.DONE_BUT_503, method="PUT", chance=0.2),
            Rule(fault=S3Fault.INTERNAL_ERROR, chance=0.1),
        )


class S3LostAnswer(S3Reset):
    """Parts are stored, and the answers are lost."""

    _LOST = (S3Fault.DONE_BUT_RESET, S3Fault.DONE_BUT_503, S3Fault.DONE_BUT_CONFLICT)

    def begin(self) -> None:
        rules = [Rule(fault=fault, method="PUT", path="*/part-*", chance=0.2) for fault in self._LOST]
        self._system.servers.front.place(*rules)


_KINDS: dict[FaultKind, type[_Momentary]] = {
    FaultKind.KILL: Kill,
    FaultKind.CRASH_POINT: CrashAtPoint,
    FaultKind.PRODUCER_CRASH: ProducerCrash,
    FaultKind.TERMINATE: Terminate,
    FaultKind.ZOMBIE: Zombie,
    FaultKind.FREEZE_IN_STEP: FreezeInStep,
    FaultKind.FEW_DESCRIPTORS: FewDescriptors,
    FaultKind.LITTLE_MEMORY: LittleMemory,
    FaultKind.OVERWRITE: OverwriteOutput,
    FaultKind.PLANT: PlantValues,
    FaultKind.REDIS_CLOCK: RedisClock,
    FaultKind.REDIS_TERMINATE: RedisTerminate,
    FaultKind.REDIS_KILL: RedisKill,
    FaultKind.REDIS_FREEZE: RedisFreeze,
    FaultKind.REDIS_HALF_OPEN: RedisHalfOpen,
    FaultKind.REDIS_RESET: RedisReset,
    FaultKind.FAILOVER: Failover,
    FaultKind.S3_OUTAGE: S3Outage,
    FaultKind.S3_RESET: S3Reset,
    FaultKind.S3_SLOW_DOWN: S3SlowDown,
    FaultKind.S3_LOST_ANSWER: S3LostAnswer,
}


def fault_of(plan: PlannedFault, system: System) -> Fault:
    """The fault that was planned."""
    fault: Fault = _KINDS[plan.kind](plan, system)  # type: ignore[assignment]  # all but the bases begin
    return fault
