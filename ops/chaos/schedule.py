"""What is broken when: a pure function of a seed and a scale, so that a run can be repeated.

Times count from the start of the faults. A fault whose worker is just being started waits for it; order and
targets stay those of the schedule.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum


class FaultKind(StrEnum):
    """Ways to break something; the values are the words of the printed table."""

    KILL = "kill -9 of a worker"
    CRASH_POINT = "death at a crash point"
    PRODUCER_CRASH = "death of a producer"
    TERMINATE = "SIGTERM of a worker"
    ZOMBIE = "worker frozen beyond its lease"
    REDIS_TERMINATE = "Redis: SIGTERM, restart"
    REDIS_KILL = "Redis: kill -9, restart"
    REDIS_FREEZE = "Redis: silent, then back"
    REDIS_HALF_OPEN = "Redis: connections half-open"
    REDIS_RESET = "Redis: connections reset"
    FAILOVER = "Redis: failover by Sentinel"
    S3_OUTAGE = "S3: away"
    S3_RESET = "S3: connections reset"
    S3_SLOW_DOWN = "S3: slow down"


# One of these at a time; what follows waits until it is over and has been noticed.
REDIS_FAULTS = frozenset(kind for kind in FaultKind if kind.value.startswith("Redis"))
S3_FAULTS = frozenset(kind for kind in FaultKind if kind.value.startswith("S3"))

WORKER_CRASH_POINTS = (
    "after_claim", "mid_fetch", "before_write", "mid_write", "after_write", "after_complete", "before_ack",
    "mid_finish",
)  # fmt: skip
PRODUCER_CRASH_POINTS = ("mid_submit", "after_seal")  # at their first passage: a small job has no second

_BREATH_SECONDS = 3.0  # between two faults of one server: time to come back
_PASSAGES = 6  # a crash point strikes at one of its first so many passages


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
    crash_point: str = ""
    passage: int = 1  # the crash point strikes when it is reached for this time
    seconds: float = 0.0  # how long it lasts

    @property
    def ends_at_seconds(self) -> float:
        """When the fault is over; how long the recovery takes is another matter."""
        return self.at_seconds + self.seconds

    def __str__(self) -> str:
        words = f"{self.number:4} {self.at_seconds:8.2f} s  {self.kind.value}"
        if self.crash_point:
            words += f" {self.crash_point}, passage {self.passage}"
        if self.kind in (FaultKind.KILL, FaultKind.CRASH_POINT, FaultKind.TERMINATE, FaultKind.ZOMBIE):
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
        points = _shuffled_points(chance, kind, count)
        for index in range(count):
            # One in each of `count` equal stretches: a kind is spread over the whole run.
            at_seconds = scale.seconds * (index + chance.random()) / count
            faults.append(
                PlannedFault(
                    number=0,
                    at_seconds=at_seconds,
                    kind=kind,
                    slot=chance.randrange(scale.workers),
                    crash_point=points[index],
                    passage=_passage(chance, points[index]),
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


def _passage(chance: random.Random, point: str) -> int:
    if point in ("", *PRODUCER_CRASH_POINTS):
        return 1
    return chance.randint(1, _PASSAGES)


def _shuffled_points(chance: random.Random, kind: FaultKind, count: int) -> list[str]:
    """Every crash point about as often as every other."""
    points = {FaultKind.CRASH_POINT: WORKER_CRASH_POINTS, FaultKind.PRODUCER_CRASH: PRODUCER_CRASH_POINTS}
    if kind not in points:
        return [""] * count
    repeated = list(points[kind]) * (count // len(points[kind]) + 1)
    taken = repeated[:count]
    chance.shuffle(taken)
    return taken


def _seconds(chance: random.Random, kind: FaultKind, index: int, scale: Scale) -> float:
    match kind:
        case FaultKind.ZOMBIE:
            return chance.uniform(6.0, 9.0)  # two to three leases
        case FaultKind.REDIS_FREEZE:
            return 20.0 if index < scale.long_freezes else chance.uniform(4.0, 6.0)
        case FaultKind.S3_OUTAGE:
            return scale.s3_outage_seconds
        case FaultKind.S3_SLOW_DOWN | FaultKind.S3_RESET:
            return chance.uniform(3.0, 6.0)
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
