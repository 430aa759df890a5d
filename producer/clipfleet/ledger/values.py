"""Arguments and answers of the ledger as frozen values, and their encoding. No I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from clipfleet.contract.jobs import JobState, Lane

MAX_LOSSES = 5
MAX_FAILURES = 5
_MOST_UP_SECONDS = 1e10  # centuries: no worker has reported more
FINISH = "finish"  # in place of the chunk, in the lease of a job that is being finished


@dataclass(frozen=True, slots=True)
class Claim:
    """A chunk that the caller holds until its lease expires."""

    token: str
    job_id: str
    chunk_id: int
    generation: int
    losses: int  # workers that died on it
    failures: int  # exceptions in our code
    waits: int  # releases because of an outage, or by a drain
    job_fingerprint: str
    first_chunk: int  # of the staged file that holds the chunk
    chunks: int  # in that file
    more: bool  # work remains for another claim
    chunk_size: int  # upper bound of its items
    retry_codes: tuple[str, ...] = ()  # of a retry: the error codes of the rows to run again; empty: all
    job_created_ms: int = 0  # with ID and fingerprint, this identifies a job among all earlier ones
    traceparent: str = ""  # of the span of its submit, if any
    asked_at: float = field(default=0.0, compare=False)  # by the caller's clock, before the call

    @classmethod
    def of_answer(cls, token: str, answer: Sequence[Any]) -> Self:
        """Parse the answer of `claim.lua`."""
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
        """Whether the chunk was held before: its part may be in place."""
        return self.losses + self.failures + self.waits > 0

    @property
    def is_exhausted(self) -> bool:
        """Whether the chunk has failed too often: it gets failed rows instead of another try."""
        return self.losses >= MAX_LOSSES or self.failures >= MAX_FAILURES


@dataclass(frozen=True, slots=True)
class FinishClaim:
    """The finishing of a job, which the caller holds until its lease expires."""

    token: str
    job_id: str
    generation: int
    job_fingerprint: str
    job_created_ms: int = 0  # see `Claim`

    @classmethod
    def of_answer(cls, token: str, answer: Sequence[Any]) -> Self:
        """Parse the answer of `claim_finish.lua`."""
        job_id, generation, fingerprint, created_ms = answer
        return cls(token, job_id, int(generation), fingerprint, int(created_ms))


@dataclass(frozen=True, slots=True)
class Lease:
    """A claim as `renew` takes it; `chunk` is a number as text, or `FINISH`."""

    job_id: str
    chunk: str
    token: str


@dataclass(frozen=True, slots=True)
class LeaseReport:
    """How far a held chunk is."""

    lease: Lease
    settled: int  # items that have a row to be: features or an error
    doing: str  # its step, or in words what is done in it; printable ASCII, at most 200 characters


@dataclass(frozen=True, slots=True)
class Draft:
    """The chunks of a job, by which a retry or rebuild replaces those in the ledger."""

    done: bytes  # bitmap of the chunks whose part stays; chunk 0 is the highest bit of the first byte
    due: Sequence[int]  # chunks below `next_chunk` that are to be claimed
    next_chunk: int  # no part was written from here on
    ok: int  # rows of the chunks that are done
    failed: int
    codes: Mapping[str, int]
    staged: Sequence[tuple[int, int]] = ()  # (first chunk, chunks) of each staged file; for a rebuild only


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What a worker reports with every heartbeat."""

    worker_id: str
    host: str
    pid: int
    models: tuple[str, ...]
    device: str = "cpu"
    held_chunks: int = 0
    up_seconds: float | None = None  # since it started; None from an older version, or if it is absurd
    refused_jobs: tuple[str, ...] = ()  # the last ones whose output it must not use, by its settings
    fills_stores: bool = False  # has the extra `[store]`, and finishes jobs that fill a store
    silent_seconds: float = field(default=0.0, compare=False)  # since this heartbeat, by the server's clock

    @classmethod
    def of_json(cls, text: str, *, silent_seconds: float = 0.0) -> Self:
        """Parse what `to_json` returns; a worker of another version may report less, or more.

        Raises:
            ValueError: no worker has written this.
        """
        try:
            facts = json.loads(text)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        if not isinstance(facts, dict) or not _are_facts(facts):
            raise ValueError("not the facts of a worker")
        return cls(
            worker_id=facts.get("worker_id", "?"),
            host=facts.get("host", "?"),
            pid=facts.get("pid", 0),
            models=tuple(facts.get("models", ())),
            device=facts.get("device", "cpu"),
            held_chunks=facts.get("held_chunks", 0),
            up_seconds=_sane_seconds(facts.get("up_seconds")),
            refused_jobs=tuple(facts.get("refused_jobs", ())),
            fills_stores=facts.get("fills_stores") is True,
            silent_seconds=silent_seconds,
        )

    def to_json(self) -> str:
        """The JSON that the ledger keeps."""
        facts = asdict(self)
        del facts["silent_seconds"]  # known when it is read
        return json.dumps(facts)

    def serves(self, model: str) -> bool:
        """Whether this worker takes jobs of a model."""
        return model in self.models


@dataclass(frozen=True, slots=True)
class LaneBacklog:
    """Pending and finished work of a lane's active jobs."""

    queued_chunks: int = 0  # staged and not leased, including those that back off
    leased_chunks: int = 0
    done_chunks: int = 0
    open_items: int = 0  # without a row yet


@dataclass(frozen=True, slots=True)
class Backlog:
    """Pending and running work of all jobs."""

    lanes: Mapping[Lane, LaneBacklog]  # all lanes
    jobs: Mapping[JobState, int]  # all states
    oldest_due_seconds: float  # how long a due chunk has not been claimed; 0: none is due
    outage_seconds: float  # longest outage of an output or source; 0: none
    jobs_left_out: int  # the oldest ones, if there are too many to count
    quarantined_jobs: int = 0  # jobs that have failed because their keys in Redis were damaged

    @classmethod
    def of_answer(cls, answer: str | bytes) -> Self:
        """Parse the answer of `backlog.lua`; unknown lanes and states are left out.

        Raises:
            ValueError: the script has not written this.
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
            raise ValueError(f"not a backlog: {error!r}") from None


@dataclass(frozen=True, slots=True)
class Retention:
    """How long a job and its rows in Redis are kept after its end. The job is kept as long as its rows."""

    job_seconds: int = 7 * 86_400
    result_seconds: int = 7 * 86_400

    @property
    def milliseconds(self) -> tuple[int, int]:
        """Both in ms, as Redis takes them."""
        return self.job_seconds * 1000, self.result_seconds * 1000


DEFAULT_RETENTION = Retention()


@dataclass(frozen=True, slots=True)
class Quota:
    """Upper bounds of what waits in the ledger; 0: unlimited."""

    items: int = 0  # of all jobs, without a row yet
    bytes: int = 0  # of the staged items of jobs whose rows live in Redis


NO_QUOTA = Quota()


def _are_facts(facts: Mapping[str, Any]) -> bool:
    models, refused = facts.get("models", []), facts.get("refused_jobs", [])
    texts = [facts.get(name, "") for name in ("worker_id", "host", "device")]
    return (
        isinstance(models, list)
        and isinstance(refused, list)
        and all(isinstance(text, str) for text in (*texts, *models, *refused))
        and all(isinstance(facts.get(name, 0), int) for name in ("pid", "held_chunks"))
        and isinstance(facts.get("up_seconds"), int | float | None)
    )


def _sane_seconds(value: float | None) -> float | None:
    """A time that a worker can have been up, or None: NaN and the like were planted."""
    is_sane = value is not None and not isinstance(value, bool) and 0 <= value <= _MOST_UP_SECONDS
    return value if is_sane else None
