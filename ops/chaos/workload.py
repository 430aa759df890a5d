"""The jobs of a run and what must come of each item: pure functions of a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from enum import StrEnum

IMAGES = 40  # different images; items share them
IMAGE_SIZE = (64, 48)  # of each: width, height
LABELS = ("red apple", "dog", "car", "house", "tree")


class ItemKind(StrEnum):
    """Where an item is read from, and what is wrong with it."""

    FILE = "file"
    URL = "url"  # answered after a while, so that chunks last
    SLOW = "slow"  # after some seconds, so that chunks are still under way when the job has been cancelled
    MISSING = "missing"  # no such file
    GONE = "gone"  # 404 for ever
    SICK = "sick"  # 404 until the job is retried
    BROKEN = "broken"  # the second half of the file is not there
    TEXT = "text"  # a file that is no image


class OutputKind(StrEnum):
    """Where the rows go."""

    FOLDER = "folder"
    S3 = "s3"
    REDIS = "redis"


class OverwrittenAfter(StrEnum):
    """How the job ended whose output another one takes with `--overwrite`."""

    CANCEL = "cancelled"  # while workers hold its chunks
    END = "completed"  # while a worker sleeps with one of its chunks


# Where it was, in which format, and how it ended.
OVERWRITES = tuple(
    f"{output} {part_format} {after}"
    for output in (OutputKind.FOLDER, OutputKind.S3)
    for part_format in ("parquet", "jsonl")
    for after in OverwrittenAfter
)


_FAILURES = {
    ItemKind.MISSING: "not_found",
    ItemKind.GONE: "not_found",
    ItemKind.BROKEN: "broken_image",
    ItemKind.TEXT: "not_an_image",
}
_KINDS = list(ItemKind)
_WEIGHTS = [50, 30, 0, 3, 4, 6, 3, 4]


@dataclass(frozen=True, slots=True)
class ItemPlan:
    """One line of a job's manifest."""

    item_id: str
    kind: ItemKind
    image: int  # below `IMAGES`

    def error_code(self, generation: int) -> str | None:
        """The code of its row after the given generation; None: the row is ok."""
        if self.kind is ItemKind.SICK:
            return "not_found" if generation == 0 else None
        return _FAILURES.get(self.kind)


@dataclass(frozen=True, slots=True)
class JobPlan:
    """One job."""

    job_id: str
    task: str  # embed, classify
    output: OutputKind
    part_format: str  # parquet, jsonl
    lane: str
    chunk_size: int
    items: tuple[ItemPlan, ...]
    is_retried: bool  # once, after its first end

    @property
    def chunks(self) -> int:
        """In how many its items are claimed."""
        return -(-len(self.items) // self.chunk_size)

    def items_of(self, chunk_id: int) -> range:
        """Indexes of the items of a chunk."""
        first = chunk_id * self.chunk_size
        return range(first, min(first + self.chunk_size, len(self.items)))

    @property
    def generations(self) -> int:
        """How often it ends: so many completion events are due."""
        return 2 if self.is_retried else 1

    def failed(self, generation: int) -> int:
        """How many rows have failed after the given generation."""
        return sum(item.error_code(generation) is not None for item in self.items)


def plan_job(seed: int, number: int) -> JobPlan:
    """The job of this number; any number may be asked for, in any order. The outputs take turns."""
    chance = random.Random(f"{seed} job {number}")
    output = list(OutputKind)[number % len(OutputKind)]
    chunk_size = chance.randint(4, 16)
    chunks = chance.randint(2, 8)
    kinds = chance.choices(_KINDS, _WEIGHTS, k=chunk_size * chunks - chance.randrange(chunk_size))
    items = tuple(
        ItemPlan(f"item-{index}", kind, chance.randrange(IMAGES)) for index, kind in enumerate(kinds)
    )
    has_failures = any(item.error_code(0) for item in items)
    return JobPlan(
        job_id=f"chaos-{seed}-{number:05d}",
        task=chance.choice(["embed", "classify"]),
        output=output,
        part_format="parquet" if output is OutputKind.REDIS else chance.choice(["parquet", "jsonl"]),
        lane=chance.choice(["high", "normal", "normal", "bulk"]),
        chunk_size=chunk_size,
        items=items,
        is_retried=has_failures and chance.random() < 0.4,
    )


BEFORE = "-before"  # ending of the id of a job whose output is taken by another one
_CHUNK_SIZE_BEFORE = 4
_CHUNKS_BEFORE = 30  # more than a job has otherwise: some of its parts have names that no later part takes


def plan_before(plan: JobPlan, *, is_slow: bool) -> JobPlan:
    """The job whose output another one takes."""
    kind = ItemKind.SLOW if is_slow else ItemKind.URL
    return replace(
        plan,
        job_id=f"{plan.job_id}{BEFORE}",
        lane="high",
        chunk_size=_CHUNK_SIZE_BEFORE,
        items=tuple(
            ItemPlan(f"before-{index}", kind, index % IMAGES)
            for index in range(_CHUNKS_BEFORE * _CHUNK_SIZE_BEFORE)
        ),
        is_retried=False,
    )
