"""A snapshot of a job, as the ledger answers it. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from clipfleet.contract.bottleneck import NO_METERS, Limit, Meters, Step, limit_of
from clipfleet.contract.brief import JobBrief
from clipfleet.contract.jobs import JobState, Lane

_DOING = "doing:"
_CLAIMED, _COMPLETE = "claimed", "complete"  # what a worker does before and after the steps
_ENCODING_LABELS = "encoding the labels"
_SECONDS = re.compile(r"\d{1,14}(\.\d{1,9})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class EarlyEnd:
    """The end of a job that was cancelled or has failed."""

    state: JobState  # `CANCELLED` or `FAILED`
    at: datetime


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A snapshot of a job. `total` grows until the source has ended (`sealed`)."""

    job_id: str
    state: JobState
    lane: Lane
    model: str
    generation: int
    sealed: bool
    total: int
    ok: int
    failed: int
    chunks: int
    done_chunks: int
    leased_chunks: int
    due_chunks: int
    codes: Mapping[str, int]
    work_seconds: Mapping[str, float]
    reason: str
    created_ms: int
    finished_ms: int | None
    ran: int = 0  # rows that were run in this generation, without those that a retry has kept
    asked_ms: int = field(default=0, compare=False)  # the time of the snapshot, by the server's clock
    starved_ms: int = 0  # time in which every staged chunk was claimed, and more were to come
    meters: Meters = NO_METERS  # where the time of this generation's chunks went
    # Checksum of the staged items, once sealed; empty if an older version sealed the job.
    source_sum: str = ""
    brief: JobBrief | None = None  # in a list of jobs only; None there: its description cannot be read
    settled: int = 0  # items of chunks in progress that have a row to be: features or an error
    doing: Mapping[str, int] = field(default_factory=dict)  # what is done now, and in how many chunks

    @classmethod
    def of_answer(cls, job_id: str, answer: Sequence[Any]) -> Self:
        """Parse the answer of `status.lua`."""
        leased, due, codes, now_ms, *flat = answer
        facts = _pairs(flat)
        steps = {name: value for name, value in facts.items() if name.startswith("seconds:")}
        open_items = int(facts["staged_items"]) - int(facts["ok"]) - int(facts["failed"])
        return cls(
            job_id=job_id,
            state=JobState(facts["state"]),
            lane=Lane(facts["lane"]),
            model=facts["model"],
            generation=int(facts["generation"]),
            sealed=facts["sealed"] == "1",
            total=int(facts["staged_items"]),
            ok=int(facts["ok"]),
            failed=int(facts["failed"]),
            chunks=int(facts["staged_chunks"]),
            done_chunks=int(facts["done_chunks"]),
            leased_chunks=int(leased),
            due_chunks=int(due),
            codes={code: int(count) for code, count in _pairs(codes).items()},
            work_seconds={
                name.removeprefix("seconds:"): float(value)
                for name, value in steps.items()
                if _SECONDS.fullmatch(value)  # a planted one must spoil nothing but the sum
            },
            reason=facts["reason"],
            created_ms=int(facts["created_ms"]),
            finished_ms=int(facts["finished_ms"]) if "finished_ms" in facts else None,
            ran=int(facts.get("ran", 0)),
            asked_ms=int(now_ms),
            starved_ms=_starved_ms(facts, int(now_ms)),
            meters=Meters.of_json(facts.get("meters", "")),
            source_sum=facts.get("source_sum", ""),
            brief=JobBrief.of_json(facts.get("brief", "")) or JobBrief.of_spec(facts.get("spec", "")),
            settled=max(0, min(int(facts.get("settled", 0)), open_items)),
            doing={
                name.removeprefix(_DOING): int(count)
                for name, count in facts.items()
                if name.startswith(_DOING)
            },
        )

    @property
    def open(self) -> int:
        """Items that are not done."""
        return self.total - self.done

    @property
    def done(self) -> int:
        """Items that have a row, or whose row is settled in a chunk in progress. Falls if a chunk is lost."""
        return self.ok + self.failed + self.settled

    @property
    def activity(self) -> str:
        """What all chunks in progress wait for, such as `loading ViT-B-32`; empty once one has its model.

        Empty, too, while one has not reported yet.
        """
        if sum(self.doing.values()) < self.leased_chunks:
            return ""
        steps = {Step(name) for name in self.doing if name in list(Step)}
        if steps - {Step.READ, Step.LABELS} or _COMPLETE in self.doing:
            return ""
        waits = {words: count for words, count in self.doing.items() if words not in (*Step, _CLAIMED)}
        if waits:
            return max(sorted(waits), key=lambda words: waits[words])
        return _ENCODING_LABELS if Step.LABELS in steps else ""

    @property
    def limit(self) -> Limit | None:
        """The bottleneck of the job; None if too little was measured, or nothing stands out."""
        return limit_of(
            self.meters,
            rows=self.ran,
            starved_seconds=self.starved_ms / 1000,
            lasted_seconds=self.lasted_seconds,
        )

    def limit_since(self, earlier: JobStatus) -> Limit | None:
        """The bottleneck since an earlier snapshot of the same generation."""
        return limit_of(
            self.meters.since(earlier.meters),
            rows=self.ran - earlier.ran,
            starved_seconds=(self.starved_ms - earlier.starved_ms) / 1000,
            lasted_seconds=self.lasted_seconds - earlier.lasted_seconds,
        )

    @property
    def lasted_seconds(self) -> float:
        """Time from the submit to the end, or until the snapshot."""
        return ((self.finished_ms or self.asked_ms) - self.created_ms) / 1000

    @property
    def has_stopped_itself(self) -> bool:
        """Whether the job ended because too many rows failed; `reason` says how many, and how to continue."""
        return self.state is JobState.CANCELLED and bool(self.reason)

    @property
    def finished_at(self) -> datetime | None:
        """When the job ended; None if it has not."""
        return None if self.finished_ms is None else datetime.fromtimestamp(self.finished_ms / 1000, UTC)

    @property
    def early_end(self) -> EarlyEnd | None:
        """How and when the job was cancelled or failed; None if neither."""
        if self.state not in (JobState.CANCELLED, JobState.FAILED) or self.finished_at is None:
            return None
        return EarlyEnd(self.state, self.finished_at)


@dataclass(frozen=True, slots=True)
class UnfinishedJobs:
    """What is to be done on this Redis, as one look shows it."""

    jobs: tuple[JobStatus, ...]  # the newest first, each with its brief
    left_out: int  # older unfinished jobs


def _starved_ms(facts: Mapping[str, str], now_ms: int) -> int:
    ended_ms = int(facts.get("finished_ms", now_ms))
    starving_ms = ended_ms - int(facts["starved_since"]) if "starved_since" in facts else 0
    return int(facts.get("starved_ms", 0)) + max(0, starving_ms)


def _pairs(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
