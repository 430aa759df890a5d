"""How much `make chaos` breaks, by name: the value of CHAOS_SCALE."""

from __future__ import annotations

from ops.chaos.schedule import FaultKind, Scale

SCALES = {
    scale.name: scale
    for scale in (
        Scale(
            "mini",  # for a test of the harness
            seconds=8,
            counts={
                FaultKind.KILL: 2,
                FaultKind.CRASH_POINT: 3,
                FaultKind.REDIS_KILL: 1,
                FaultKind.REDIS_RESET: 1,
                FaultKind.ZOMBIE: 1,
                FaultKind.FREEZE_IN_STEP: 1,
            },
            workers=2,
            long_freezes=0,
        ),
        Scale(
            "short",
            seconds=120,
            workers=4,
            counts={
                FaultKind.KILL: 16,
                FaultKind.CRASH_POINT: 16,
                FaultKind.PRODUCER_CRASH: 4,
                FaultKind.TERMINATE: 3,
                FaultKind.ZOMBIE: 2,
                FaultKind.REDIS_TERMINATE: 1,
                FaultKind.REDIS_KILL: 1,
                FaultKind.REDIS_FREEZE: 1,
                FaultKind.REDIS_HALF_OPEN: 1,
                FaultKind.REDIS_RESET: 3,
                FaultKind.S3_OUTAGE: 1,
                FaultKind.S3_RESET: 2,
                FaultKind.S3_SLOW_DOWN: 2,
                FaultKind.FREEZE_IN_STEP: 12,
                FaultKind.FEW_DESCRIPTORS: 1,
                FaultKind.LITTLE_MEMORY: 1,
                FaultKind.OVERWRITE: 8,
                FaultKind.PLANT: 6,
                FaultKind.REDIS_CLOCK: 2,
                FaultKind.S3_LOST_ANSWER: 3,
            },
        ),
        Scale(
            "default",
            seconds=480,
            workers=4,
            counts={
                FaultKind.KILL: 60,
                FaultKind.CRASH_POINT: 48,
                FaultKind.PRODUCER_CRASH: 12,
                FaultKind.TERMINATE: 12,
                FaultKind.ZOMBIE: 8,
                FaultKind.REDIS_TERMINATE: 4,
                FaultKind.REDIS_KILL: 4,
                FaultKind.REDIS_FREEZE: 3,
                FaultKind.REDIS_HALF_OPEN: 3,
                FaultKind.REDIS_RESET: 12,
                FaultKind.S3_OUTAGE: 2,
                FaultKind.S3_RESET: 8,
                FaultKind.S3_SLOW_DOWN: 6,
                FaultKind.FREEZE_IN_STEP: 24,
                FaultKind.FEW_DESCRIPTORS: 4,
                FaultKind.LITTLE_MEMORY: 4,
                FaultKind.OVERWRITE: 24,
                FaultKind.PLANT: 13,
                FaultKind.REDIS_CLOCK: 4,
                FaultKind.S3_LOST_ANSWER: 8,
            },
            s3_outage_seconds=60,
        ),
        Scale(
            "kills",
            seconds=720,
            workers=4,
            counts={
                FaultKind.KILL: 140,
                FaultKind.CRASH_POINT: 64,
                FaultKind.PRODUCER_CRASH: 16,
                FaultKind.TERMINATE: 12,
                FaultKind.ZOMBIE: 8,
                FaultKind.REDIS_TERMINATE: 4,
                FaultKind.REDIS_KILL: 4,
                FaultKind.REDIS_FREEZE: 3,
                FaultKind.REDIS_HALF_OPEN: 3,
                FaultKind.REDIS_RESET: 10,
                FaultKind.S3_OUTAGE: 2,
                FaultKind.S3_RESET: 6,
                FaultKind.S3_SLOW_DOWN: 6,
                FaultKind.FREEZE_IN_STEP: 32,
                FaultKind.FEW_DESCRIPTORS: 4,
                FaultKind.LITTLE_MEMORY: 4,
                FaultKind.OVERWRITE: 32,
                FaultKind.PLANT: 26,
                FaultKind.REDIS_CLOCK: 4,
                FaultKind.S3_LOST_ANSWER: 8,
            },
            s3_outage_seconds=60,
        ),
        Scale(
            "nightly",
            seconds=5400,
            workers=4,
            counts={
                FaultKind.KILL: 600,
                FaultKind.CRASH_POINT: 320,
                FaultKind.PRODUCER_CRASH: 80,
                FaultKind.TERMINATE: 100,
                FaultKind.ZOMBIE: 60,
                FaultKind.REDIS_TERMINATE: 50,
                FaultKind.REDIS_KILL: 50,
                FaultKind.REDIS_FREEZE: 60,
                FaultKind.REDIS_HALF_OPEN: 40,
                FaultKind.REDIS_RESET: 100,
                FaultKind.S3_OUTAGE: 10,
                FaultKind.S3_RESET: 60,
                FaultKind.S3_SLOW_DOWN: 60,
                FaultKind.FREEZE_IN_STEP: 200,
                FaultKind.FEW_DESCRIPTORS: 30,
                FaultKind.LITTLE_MEMORY: 30,
                FaultKind.OVERWRITE: 200,
                FaultKind.PLANT: 130,
                FaultKind.REDIS_CLOCK: 40,
                FaultKind.S3_LOST_ANSWER: 60,
            },
            long_freezes=20,
            s3_outage_seconds=60,
            soak_seconds=3600,
        ),
        Scale(
            "failover",
            seconds=60,
            workers=3,
            counts={
                FaultKind.KILL: 6,
                FaultKind.CRASH_POINT: 4,
                FaultKind.FAILOVER: 4,
                FaultKind.ZOMBIE: 2,
                FaultKind.FREEZE_IN_STEP: 2,
            },
            with_sentinels=True,
        ),
        Scale(
            "nightly-failover",
            seconds=900,
            workers=4,
            counts={
                FaultKind.KILL: 60,
                FaultKind.CRASH_POINT: 32,
                FaultKind.ZOMBIE: 8,
                FaultKind.FAILOVER: 50,
                FaultKind.FREEZE_IN_STEP: 16,
            },
            with_sentinels=True,
        ),
    )
}

# What CHAOS_SCALE names: these one after the other, or else the scale of that name.
PARTS = {"default": ("default", "failover"), "nightly": ("nightly", "nightly-failover")}


def parts_of(name: str) -> tuple[Scale, ...]:
    """The scales that are run for a value of CHAOS_SCALE, in order."""
    return tuple(SCALES[part] for part in PARTS.get(name, (name,)))
