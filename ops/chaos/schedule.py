"""What is broken when: a pure function of a seed and a scale, so that a run can be repeated.

Times count from the start of the faults. A fault whose worker is just being started waits for it; order and
targets stay those of the schedule.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from ops.chaos.planting import PLANTINGS
from ops.chaos.workload import OVERWRITES


class FaultKind(StrEnum):
    """Ways to break something; the values are the words of the printed table."""

    KILL = "kill -9 of a worker"
    CRASH_POINT = "death at a crash point"
    PRODUCER_CRASH = "death of a producer"
    TERMINATE = "SIGTERM of a worker"
    ZOMBIE = "worker frozen beyond its lease"
    FREEZE_IN_STEP = "worker frozen within a write"
    FEW_DESCRIPTORS = "worker with few descriptors"
    LITTLE_MEMORY = "worker with little memory"
    OVERWRITE = "--overwrite under late writers"
    PLANT = "values planted in a job's keys"
    REDIS_TERMINATE = "Redis: SIGTERM, restart"
    REDIS_KILL = "Redis: kill -9, restart"
    REDIS_FREEZE = "Redis: silent, then back"
    REDIS_HALF_OPEN = "Redis: connections half-open"
    REDIS_RESET = "Redis: connections reset"
    REDIS_CLOCK = "Redis: the clock jumps"
    FAILOVER = "Redis: failover by Sentinel"
    S3_OUTAGE = "S3: away"
    S3_RESET = "S3: connections reset"
    S3_SLOW_DOWN = "S3: slow down"
    S3_LOST_ANSWER = "S3: answers lost"


# One of these at a time; what follows waits until it is over and has been noticed.
REDIS_FAULTS = frozenset(kind for kind in FaultKind if kind.value.startswith("Redis"))
S3_FAULTS = frozenset(kind for kind in FaultKind if kind.value.startswith("S3"))

WORKER_CRASH_POINTS = (
    "after_claim", "mid_fetch", "before_write", "mid_write", "after_write", "after_complete", "before_ack",
    "mid_finish",
)  # fmt: skip
PRODUCER_CRASH_POINTS = ("mid_submit", "after_seal")  # at their first passage: a small job has no second
# Two of them are not the product's: the harness puts them before whatever makes a part visible.
FREEZE_POINTS = (
    "in_publish", "mid_write", "in_replace", "before_write", "in_publish", "mid_finish", "in_replace",
)  # fmt: skip
CLOCK_JUMPS = ("+3600 s", "-600 s")
ADDRESS_SPACES = ("3.2 GB", "2.6 GB")  # enough for the model but not for all threads; not even for the model

# Of a kind that can be done in several ways, every way about as often as every other.
_VARIANTS: Mapping[FaultKind, tuple[str, ...]] = {
    FaultKind.CRASH_POINT: WORKER_CRASH_POINTS,
    FaultKind.PRODUCER_CRASH: PRODUCER_CRASH_POINTS,
    FaultKind.FREEZE_IN_STEP: FREEZE_POINTS,
    FaultKind.LITTLE_MEMORY: ADDRESS_SPACES,
    FaultKind.OVERWRITE: OVERWRITES,
    FaultKind.PLANT: tuple(PLANTINGS),
    FaultKind.REDIS_CLOCK: CLOCK_JUMPS,
}
_OF_WORKERS = frozenset(
    {
        FaultKind.KILL, FaultKind.CRASH_POINT, FaultKind.TERMINATE, FaultKind.ZOMBIE,
        FaultKind.FREEZE_IN_STEP, FaultKind.FEW_DESCRIPTORS, FaultKind.LITTLE_MEMORY,
    }
)  # fmt: skip

FREEZE_SECONDS = 5.5  # so long that the lease is over, and the chunk has been done by another worker
_BREATH_SECONDS = 3.0  # between two faults of one server: time to recover
_PASSAGES = 6  # a crash point strikes at one of its first so many passages
_FREEZE_PASSAGES = 2  # likewise; some of these steps are rare, and a worker waits for one strike at a time


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is broken in how long."""

    name: str
    seconds: float  # in which the faults begin
    counts: Mapping[FaultKind, int]
    workers: int = 3
    with_sentinels: bool = False  # a pair that fails over, instead of one Redis that the other faults are for
    long_freezes: int = 1  # of the silent times of Redis, so many last 20 s
    s3_outage_seconds: float = 12.0
    soak_seconds: float = 0.0  # of work without faults afterwards


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """One fault."""

    number: int
    at_seconds: float
    kind: FaultKind
    slot: int = 0  # of the worker that it strikes
    variant: str = ""  # which of several ways, such as the crash point
    passage: int = 1  # the crash point strikes when it is reached for this time
    seconds: float = 0.0  # how long it lasts

    @property
    def ends_at_seconds(self) -> float:
        """When the fault is over; how long the recovery takes is another matter."""
        return self.at_seconds + self.seconds

    def __str__(self) -> str:
        words = f"{self.number:4} {self.at_seconds:8.2f} s  {self.kind.value}"
        if self.variant:
            words += f" {self.variant}"
        if self.kind in (FaultKind.CRASH_POINT, FaultKind.FREEZE_IN_STEP):
            words += f", passage {self.passage}"
        if self.kind in _OF_WORKERS:
            words += f", worker {self.slot}"
        return words + (f", {self.seconds:.1f} s" if self.seconds else "")


def make_schedule(seed: int, scale: Scale) -> tuple[PlannedFault, ...]:
    """The faults of a run, by time.

    Args:
        seed: the same seed and scale give the same faults.
        scale: how many of each kind.
    """
    chance = random.Random(f"{seed} {scale.name}")
    faults: list[PlannedFault] = []
    for kind in FaultKind:
        count = scale.counts.get(kind, 0)
        variants = _shuffled_variants(chance, kind, count)
        for index in range(count):
            # One in each of `count` equal stretches: a kind is spread over the whole run.
            at_seconds = scale.seconds * (index + chance.random()) / count
            faults.append(
                PlannedFault(
                    number=0,
                    at_seconds=at_seconds,
                    kind=kind,
                    slot=chance.randrange(scale.workers),
                    variant=variants[index],
                    passage=_passage(chance, kind),
                    seconds=_seconds(chance, kind, index, scale),
                )
            )
    faults.sort(key=lambda fault: fault.at_seconds)
    for servers in (REDIS_FAULTS, S3_FAULTS):
        faults = _one_at_a_time(faults, servers)
    faults.sort(key=lambda fault: fault.at_seconds)
    return tuple(
        replace(fault, number=number, at_seconds=round(fault.at_seconds, 2), seconds=round(fault.seconds, 1))
        for number, fault in enumerate(faults, 1)
    )


def _passage(chance: random.Random, kind: FaultKind) -> int:
    match kind:
        case FaultKind.CRASH_POINT:
            return chance.randint(1, _PASSAGES)
        case FaultKind.FREEZE_IN_STEP:
            return chance.randint(1, _FREEZE_PASSAGES)
        case _:
            return 1


def _shuffled_variants(chance: random.Random, kind: FaultKind, count: int) -> list[str]:
    """Every variant about as often as every other."""
    known = _VARIANTS.get(kind, ("",))
    taken = (list(known) * (count // len(known) + 1))[:count]
    chance.shuffle(taken)
    return taken


def _seconds(chance: random.Random, kind: FaultKind, index: int, scale: Scale) -> float:
    match kind:
        case FaultKind.ZOMBIE:
            return chance.uniform(6.0, 9.0)  # two to three leases
        case FaultKind.FREEZE_IN_STEP:
            return FREEZE_SECONDS + chance.uniform(-1.0, 1.0)
        case FaultKind.FEW_DESCRIPTORS | FaultKind.LITTLE_MEMORY:
            return chance.uniform(8.0, 12.0)
        case FaultKind.OVERWRITE:
            return chance.uniform(0.0, 5.0)  # until the next job comes into the same output
        case FaultKind.REDIS_FREEZE:
            return 20.0 if index < scale.long_freezes else chance.uniform(4.0, 6.0)
        case FaultKind.S3_OUTAGE:
            return scale.s3_outage_seconds
        case FaultKind.S3_SLOW_DOWN | FaultKind.S3_RESET:
            return chance.uniform(3.0, 6.0)
        case FaultKind.S3_LOST_ANSWER:
            return chance.uniform(8.0, 12.0)
        case _:
            return 0.0


def _one_at_a_time(faults: Iterable[PlannedFault], kinds: frozenset[FaultKind]) -> list[PlannedFault]:
    """The same faults; those of the given kinds are put off until the one before is over."""
    free_at = 0.0
    placed = []
    for fault in faults:
        if fault.kind in kinds:
            fault = replace(fault, at_seconds=max(fault.at_seconds, free_at))
            free_at = fault.ends_at_seconds + _BREATH_SECONDS
        placed.append(fault)
    return placed
