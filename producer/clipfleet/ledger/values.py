"""What the ledger takes and answers, as frozen values, and how they are spelled there. No I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from clipfleet.contract.bottleneck import NO_METERS, Limit, Meters, limit_of
from clipfleet.contract.jobs import JobState, Lane

MAX_LOSSES = 5
MAX_FAILURES = 5
_SECONDS = re.compile(r"\d{1,14}(\.\d{1,9})?", re.ASCII)
FINISH = "finish"  # stands for the chunk in the lease of a job that is being finished


@dataclass(frozen=True, slots=True)
class Claim:
    """A chunk that is ours until its lease runs out."""

    token: str
    job_id: str
    chunk_id: int
    generation: int
    losses: int  # workers that died on it
    failures: int  # exceptions of ours
    waits: int  # releases for the world's sake
    job_fingerprint: str
    first_chunk: int  # of the staged file that holds the chunk
    chunks: int  # in that file
    more: bool  # work remains for another claim
    chunk_size: int  # items in the chunk, at most
    retry_codes: tuple[str, ...] = ()  # of a retry: the error codes of the rows to run again; empty: all
    job_created_ms: int = 0  # with id and fingerprint, what tells a job from all that were before it
    traceparent: str = ""  # of the span of its submit, if there was one
    asked_at: float = field(default=0.0, compare=False)  # by the clock of whoever did, before the answer came

    @classmethod
    def of_answer(cls, token: str, answer: Sequence[Any]) -> Self:
        """From what `claim.lua` answers."""
        job_id, chunk, generation, losses, failures, waits, fingerprint, first, chunks, more = answer[:10]
        size, codes, created_ms, traceparent = answer[10:]
        return cls(
            token=token, job_id=job_id, chunk_id=int(chunk), generation=int(generation), losses=int(losses),
            failures=int(failures), waits=int(waits), job_fingerprint=fingerprint, first_chunk=int(first),
            chunks=int(chunks), more=more == "1", chunk_size=int(size),
            retry_codes=tuple(codes.split(",")) if codes else (), job_created_ms=int(created_ms),
            traceparent=traceparent,
        )  # fmt: skip

    @property
    def has_history(self) -> bool:
        """True if somebody held the chunk before: its part may be in place."""
        return self.losses + self.failures + self.waits > 0

    @property
    def is_exhausted(self) -> bool:
        """True if the chunk has failed too often: it gets failed rows instead of another try."""
        return self.losses >= MAX_LOSSES or self.failures >= MAX_FAILURES


@dataclass(frozen=True, slots=True)
class FinishClaim:
    """The finishing of a job that is ours until its lease runs out."""

    token: str
    job_id: str
    generation: int
    job_fingerprint: str
    job_created_ms: int = 0  # see `Claim`

    @classmethod
    def of_answer(cls, token: str, answer: Sequence[Any]) -> Self:
        """From what `claim_finish.lua` answers."""
        job_id, generation, fingerprint, created_ms = answer
        return cls(token, job_id, int(generation), fingerprint, int(created_ms))


@dataclass(frozen=True, slots=True)
class Lease:
    """What `renew` needs to know of a claim; `chunk` is a number as text, or `FINISH`."""

    job_id: str
    chunk: str
    token: str


@dataclass(frozen=True, slots=True)
class EarlyEnd:
    """The end of a job that was not finished."""

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
    ran: int = 0  # rows that were run in this generation: without those that a retry has kept
    asked_ms: int = field(default=0, compare=False)  # when this was so, by the server's clock
    starved_ms: int = 0  # not all was submitted, and all that was had been claimed
    meters: Meters = NO_METERS  # where the time of this generation's chunks went
    # Of the items as they were staged, once sealed; empty where an older version did that.
    source_sum: str = ""

    @classmethod
    def of_answer(cls, job_id: str, answer: Sequence[Any]) -> Self:
        """From what `status.lua` answers."""
        leased, due, codes, now_ms, *flat = answer
        facts = _pairs(flat)
        steps = {name: value for name, value in facts.items() if name.startswith("seconds:")}
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
                if _SECONDS.fullmatch(value)  # anybody's: it may spoil the sum, and nothing else
            },
            reason=facts["reason"],
            created_ms=int(facts["created_ms"]),
            finished_ms=int(facts["finished_ms"]) if "finished_ms" in facts else None,
            ran=int(facts.get("ran", 0)),
            asked_ms=int(now_ms),
            starved_ms=_starved_ms(facts, int(now_ms)),
            meters=Meters.of_json(facts.get("meters", "")),
            source_sum=facts.get("source_sum", ""),
        )

    @property
    def open(self) -> int:
        """Items without a row yet."""
        return self.total - self.ok - self.failed

    @property
    def limit(self) -> Limit | None:
        """What limits the job, or has limited it; None where too little was seen, or nothing stands out."""
        return limit_of(
            self.meters,
            rows=self.ran,
            starved_seconds=self.starved_ms / 1000,
            lasted_seconds=self.lasted_seconds,
        )

    def limit_since(self, earlier: JobStatus) -> Limit | None:
        """What has limited the job since an earlier snapshot of the same generation."""
        return limit_of(
            self.meters.since(earlier.meters),
            rows=self.ran - earlier.ran,
            starved_seconds=(self.starved_ms - earlier.starved_ms) / 1000,
            lasted_seconds=self.lasted_seconds - earlier.lasted_seconds,
        )

    @property
    def lasted_seconds(self) -> float:
        """From the submit to the end, or until now."""
        return ((self.finished_ms or self.asked_ms) - self.created_ms) / 1000

    @property
    def has_stopped_itself(self) -> bool:
        """Whether too many rows failed; `reason` says how many, and how to go on."""
        return self.state is JobState.CANCELLED and bool(self.reason)

    @property
    def finished_at(self) -> datetime | None:
        """When the job ended."""
        return None if self.finished_ms is None else datetime.fromtimestamp(self.finished_ms / 1000, UTC)

    @property
    def early_end(self) -> EarlyEnd | None:
        """How and when the job was cancelled or failed; None if it was not."""
        if self.state not in (JobState.CANCELLED, JobState.FAILED) or self.finished_at is None:
            return None
        return EarlyEnd(self.state, self.finished_at)


@dataclass(frozen=True, slots=True)
class Draft:
    """What a retry or rebuild puts in place of what the ledger knows of a job's chunks."""

    done: bytes  # bitmap of the chunks whose part stays; chunk 0 is the highest bit of the first byte
    due: Sequence[int]  # chunks below `next_chunk` that are to be claimed
    next_chunk: int  # from here on nobody has written a part
    ok: int  # rows of the chunks that are done
    failed: int
    codes: Mapping[str, int]
    staged: Sequence[tuple[int, int]] = ()  # (first chunk, chunks) of each staged file; only a rebuild tells


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What a worker says about itself with every heartbeat."""

    worker_id: str
    host: str
    pid: int
    models: tuple[str, ...]
    device: str = "cpu"

    @classmethod
    def of_json(cls, text: str) -> Self:
        """From what `to_json` gave; a worker of another version may say less, or more.

        Raises:
            ValueError: no worker has said this.
        """
        try:
            facts = json.loads(text)
        except RecursionError:
            raise ValueError("nested without end") from None
        if not isinstance(facts, dict) or not _are_facts(facts):
            raise ValueError("these are no facts of a worker")
        return cls(
            worker_id=facts.get("worker_id", "?"),
            host=facts.get("host", "?"),
            pid=facts.get("pid", 0),
            models=tuple(facts.get("models", ())),
            device=facts.get("device", "cpu"),
        )

    def to_json(self) -> str:
        """As the ledger keeps them."""
        return json.dumps(asdict(self))

    def serves(self, model: str) -> bool:
        """Whether this worker takes jobs of a model."""
        return model in self.models


@dataclass(frozen=True, slots=True)
class LaneBacklog:
    """What the jobs of a lane that go on have before them, and behind them."""

    queued_chunks: int = 0  # staged, and nobody's; those included that wait for a back-off
    leased_chunks: int = 0
    done_chunks: int = 0
    open_items: int = 0  # without a row yet


@dataclass(frozen=True, slots=True)
class Backlog:
    """How much waits and runs, of all jobs together."""

    lanes: Mapping[Lane, LaneBacklog]  # all lanes
    jobs: Mapping[JobState, int]  # all states
    oldest_due_seconds: float  # how long some chunk has waited for anybody to claim it; 0: none waits
    outage_seconds: float  # how long a job has waited for its output or source; 0: none does
    jobs_left_out: int  # the oldest ones, where there are too many to look at
    quarantined_jobs: int = 0  # that have failed because what Redis held of them was damaged

    @classmethod
    def of_answer(cls, answer: str | bytes) -> Self:
        """From what `backlog.lua` answers; lanes and states that nobody knows are left out.

        Raises:
            ValueError: the script has not said this.
        """
        try:
            facts = json.loads(answer)
            lanes, states = facts["lanes"], facts["states"]
            return cls(
                lanes={
                    lane: LaneBacklog(*map(int, lanes[lane])) if lane in lanes else LaneBacklog()
                    for lane in Lane
                },
                jobs={state: int(states[state]) if state in states else 0 for state in JobState},
                oldest_due_seconds=facts["oldest_due_ms"] / 1000,
                outage_seconds=facts["outage_ms"] / 1000,
                jobs_left_out=int(facts["left_out"]),
                quarantined_jobs=int(facts.get("quarantined", 0)),
            )
        except (LookupError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(f"no backlog: {error!r}") from None


@dataclass(frozen=True, slots=True)
class Retention:
    """How long a job and its rows in Redis stay after its end. The job stays at least as long as the rows."""

    job_seconds: int = 7 * 86_400
    result_seconds: int = 7 * 86_400

    @property
    def milliseconds(self) -> tuple[int, int]:
        """Both, as Redis wants them."""
        return self.job_seconds * 1000, self.result_seconds * 1000


DEFAULT_RETENTION = Retention()


@dataclass(frozen=True, slots=True)
class Quota:
    """How much may wait in the ledger before it takes no more; 0: no bound."""

    items: int = 0  # of all jobs, not done yet
    bytes: int = 0  # of the staged items of jobs whose rows live in Redis


NO_QUOTA = Quota()


def _starved_ms(facts: Mapping[str, str], now_ms: int) -> int:
    ended_ms = int(facts.get("finished_ms", now_ms))
    starving_ms = ended_ms - int(facts["starved_since"]) if "starved_since" in facts else 0
    return int(facts.get("starved_ms", 0)) + max(0, starving_ms)


def _are_facts(facts: Mapping[str, Any]) -> bool:
    models = facts.get("models", [])
    texts = [facts.get(name, "") for name in ("worker_id", "host", "device")]
    return (
        isinstance(models, list)
        and all(isinstance(text, str) for text in (*texts, *models))
        and isinstance(facts.get("pid", 0), int)
    )


def _pairs(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
