"""The truth about every job and chunk, in Redis, changed only by the Lua scripts beside this file.

Each script is atomic and safe to run twice: redis-py repeats commands after a time-out, and a killed program
starts over. Times are the server's. Nothing here knows about Celery, outputs or models.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis

from clipfleet import keys
from clipfleet.contract import Job, JobState, Lane, read_job
from clipfleet.errors import JobConflictError, JobNotFoundError, JobUnreadableError
from clipfleet.lua_scripts import load_scripts
from clipfleet.redis_connection import connect, translated

MAX_LOSSES = 5
MAX_FAILURES = 5
FINISH = "finish"  # stands for the chunk in the lease of a job that is being finished

_SCRIPTS = (
    "submit", "stage", "seal", "claim", "renew", "complete", "release", "reconcile", "claim_finish", "finish",
    "postpone_finish", "cancel", "pause", "status", "heartbeat", "farewell", "workers", "draft_begin",
    "draft_add", "retry", "rebuild",
)  # fmt: skip


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


@dataclass(frozen=True, slots=True)
class Lease:
    """What `renew` needs to know of a claim; `chunk` is a number as text, or `FINISH`."""

    job_id: str
    chunk: str
    token: str


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
    stage_seconds: Mapping[str, float]
    reason: str
    created_ms: int
    finished_ms: int | None

    @property
    def open(self) -> int:
        """Items without a row yet."""
        return self.total - self.ok - self.failed


@dataclass(frozen=True, slots=True)
class StageAnswer:
    """What the ledger said to a staged file: `staged`, `known`, `gap` or `refused`."""

    word: str
    detail: str = ""


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
    extra: Mapping[str, Any] = field(default_factory=dict)

    def serves(self, model: str) -> bool:
        """Whether this worker takes jobs of a model."""
        return model in self.models


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


class Ledger:
    """All calls raise `RedisUnavailableError` while Redis is away."""

    def __init__(self, url: str, *, client: redis.Redis | None = None) -> None:
        self._url = url
        self._redis = client or connect(url)
        self._scripts = load_scripts(self._redis, _SCRIPTS)

    def _run(self, script: str, *arguments: str | int | float | bytes) -> Any:
        with translated(self._url):
            return self._scripts[script](keys=[], args=list(arguments))

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def ping(self) -> None:
        """Raise `RedisUnavailableError` unless Redis answers."""
        with translated(self._url):
            self._redis.ping()

    # --- the producer's side ---

    def submit(self, job: Job, retention: Retention = DEFAULT_RETENTION) -> tuple[bool, JobState]:
        """Make a job known. `retention` counts where the output is `redis://`: others are told at their end.

        Returns:
            Whether it is new, and its state. An equal job of this id is returned as it is, to be resumed.

        Raises:
            JobConflictError: the id is taken by a job that differs.
        """
        answer = self._run(
            "submit",
            job.job_id,
            job.model_dump_json(),
            job.fingerprint,
            job.lane.value,
            job.model,
            job.chunk_size,
            *(retention.milliseconds if job.output_is_redis else ()),
        )
        if answer[0] == "created":
            return True, JobState.SUBMITTING
        _, state, fingerprint, spec = answer
        if fingerprint != job.fingerprint:
            raise JobConflictError(_conflict(job, spec))
        return False, JobState(state)

    def stage(self, job_id: str, first_chunk: int, chunks: int, items: int) -> StageAnswer:
        """Tell that the staged file of these chunks is in place; they may be claimed from now on."""
        word, *detail = self._run("stage", job_id, first_chunk, chunks, items)
        return StageAnswer(word, str(detail[0]) if detail else "")

    def staged_files(self, job_id: str) -> list[tuple[int, int]]:
        """`(first_chunk, chunks)` of each staged file, in order."""
        with translated(self._url):
            members = self._redis.zrange(keys.job(job_id, keys.STAGED), 0, -1)
        pairs = (str(member).split("-") for member in members)
        return [(int(first), int(chunks)) for first, chunks in pairs]

    def seal(self, job_id: str, chunks: int, items: int) -> str:
        """Tell that the source has ended; answers `sealed`, `mismatch` or `refused`. Idempotent."""
        return str(self._run("seal", job_id, chunks, items)[0])

    def cancel(self, job_id: str, *, ttl_seconds: int) -> tuple[bool, JobState]:
        """End a job early; False and its state if it is finishing or over.

        Raises:
            JobNotFoundError: no such job.
        """
        return self._changed(job_id, self._run("cancel", job_id, "cancelled", "", ttl_seconds * 1000))

    def fail(self, job_id: str, reason: str, *, ttl_seconds: int, generation: int = 0) -> None:
        """End a job because no rows could be written in this generation of it. Idempotent."""
        self._run("cancel", job_id, "failed", reason, ttl_seconds * 1000, generation)

    def pause(self, job_id: str, reason: str) -> tuple[bool, JobState]:
        """Stop handing out chunks of a job; those under way are finished. See `cancel` for the answer."""
        return self._changed(job_id, self._run("pause", job_id, "paused", reason))

    def resume(self, job_id: str) -> tuple[bool, JobState]:
        """Undo `pause`. See `cancel` for the answer."""
        return self._changed(job_id, self._run("pause", job_id, "running", ""))

    def begin_draft(self, job_id: str, token: str) -> None:
        """Begin a retry or rebuild; one of the same job that was begun before can do nothing any more.

        `token` names it in `retry` and `rebuild`. An output is looked at after this, not before.
        """
        self._run("draft_begin", job_id, token)

    def retry(
        self, job_id: str, token: str, draft: Draft, *, generation: int, codes: Sequence[str] = ()
    ) -> tuple[str, JobState | None]:
        """Have an ended job go on in a new generation. Idempotent.

        Args:
            job_id: the job.
            token: what `begin_draft` was given.
            draft: its chunks as the output shows them.
            generation: higher than that of every part.
            codes: error codes of the failed rows to run again; empty: all.

        Returns:
            `started`, `refused` (it is not over), `taken` (another retry began after this one) or `missing`;
            and the state.
        """
        if not self._note(job_id, token, draft):
            return "taken", None
        word, state = self._run("retry", job_id, token, generation, ",".join(codes), *_draft_counts(draft))
        return word, JobState(state) if state else None

    def rebuild(
        self,
        job: Job,
        token: str,
        draft: Draft,
        *,
        state: JobState,
        generation: int,
        codes: Sequence[str] = (),
        items: int,
        ttl_seconds: int,
    ) -> tuple[str, JobState | None]:
        """Put a job back that the ledger has lost; one that it knows stays as it is. Idempotent.

        Args:
            job: the job, as its output holds it.
            token: what `begin_draft` was given.
            draft: its chunks and staged files, as the output shows them.
            state: `submitting` if it is not sealed, `running`, or how it ended; then no event is sent.
            generation: that of the newest part, at least.
            codes: see `retry`.
            items: of all staged files.
            ttl_seconds: how long an ended job is kept.

        Returns:
            `rebuilt`, `exists` or `taken` (another rebuild began after this one); and the state.
        """
        if not self._note(job.job_id, token, draft):
            return "taken", None
        chunks = sum(count for _, count in draft.staged)
        word, known = self._run(
            "rebuild", job.job_id, token, job.model_dump_json(), job.fingerprint, job.lane.value, job.model,
            job.chunk_size, int(job.created_at.timestamp() * 1000), generation, ",".join(codes), state.value,
            chunks, items, ttl_seconds * 1000, *_draft_counts(draft),
        )  # fmt: skip
        return word, JobState(known) if known else None

    def _note(self, job_id: str, token: str, draft: Draft) -> bool:
        """Tell the ledger what will be put in place; False if another retry or rebuild has begun."""
        files = [(first, f"{first}-{count}") for first, count in draft.staged]
        slices: list[tuple[str, Sequence[Any]]] = [("done", [draft.done])]
        slices += [("due", part) for part in _slices(draft.due)]
        slices += [("staged", [value for pair in part for value in pair]) for part in _slices(files)]
        return all(self._run("draft_add", job_id, token, kind, *part) == 1 for kind, part in slices)

    def _changed(self, job_id: str, answer: list[Any]) -> tuple[bool, JobState]:
        if answer[1] == "missing":
            raise _not_found(job_id)
        return bool(answer[0]), JobState(answer[1])

    def job(self, job_id: str) -> Job:
        """The whole job.

        Raises:
            JobNotFoundError: no such job.
            JobUnreadableError: another version of clipfleet submitted it.
        """
        with translated(self._url):
            spec = self._redis.hget(keys.job(job_id), "spec")
        if spec is None:
            raise _not_found(job_id)
        return read_job(spec)

    def status(self, job_id: str) -> JobStatus:
        """A snapshot of a job.

        Raises:
            JobNotFoundError: no such job.
        """
        answer = self._run("status", job_id)
        if not answer:
            raise _not_found(job_id)
        return _status(job_id, answer)

    def jobs(self, limit: int = 50) -> list[JobStatus]:
        """The newest jobs first."""
        with translated(self._url):
            names = self._redis.zrange(keys.JOBS, 0, limit - 1, desc=True)
        answers = ((str(name), self._run("status", str(name))) for name in names)
        return [_status(name, answer) for name, answer in answers if answer]

    def wait_for_progress(self, job_id: str, after: str, block_seconds: float) -> str:
        """Block until the job's stream has an entry after the one named; returns the last entry's name.

        `after` is `"$"` for what comes from now on, or an earlier answer. After `block_seconds` (at most 5)
        without news `after` itself comes back.
        """
        block_ms = max(1, int(min(block_seconds, 5) * 1000))
        with translated(self._url):
            answer: Any = self._redis.xread({keys.job(job_id, keys.STREAM): after}, block=block_ms)
        if not answer:
            return after
        entries = next(iter(answer.values()))[0] if isinstance(answer, dict) else answer[0][1]
        return str(entries[-1][0])

    def workers(self, silence_seconds: float = 30) -> list[WorkerFacts]:
        """Workers that were heard of within the given time."""
        return [_facts(text) for text in self._run("workers", int(silence_seconds * 1000))]

    # --- the worker's side ---

    def claim(
        self,
        token: str,
        lease_seconds: float,
        lanes: Sequence[Lane],
        models: Sequence[str],
        excluded_jobs: Iterable[str] = (),
    ) -> Claim | None:
        """Lease the best chunk that is due; the same token always gets the same chunk."""
        answer = self._run(
            "claim", token, int(lease_seconds * 1000), len(lanes), *(lane.value for lane in lanes),
            len(models), *models, *excluded_jobs,
        )  # fmt: skip
        if not answer:
            return None
        job_id, chunk, generation, losses, failures, waits, fingerprint, first, chunks, more = answer[:10]
        size, codes, created_ms = answer[10:]
        return Claim(
            token=token, job_id=job_id, chunk_id=int(chunk), generation=int(generation), losses=int(losses),
            failures=int(failures), waits=int(waits), job_fingerprint=fingerprint, first_chunk=int(first),
            chunks=int(chunks), more=more == "1", chunk_size=int(size),
            retry_codes=tuple(codes.split(",")) if codes else (), job_created_ms=int(created_ms),
        )  # fmt: skip

    def renew(self, leases: Sequence[Lease], lease_seconds: float) -> list[str]:
        """Prolong leases; one word each: `held`, `paused`, `lost` or `cancelled`."""
        if not leases:
            return []
        flat = [part for lease in leases for part in (lease.job_id, lease.chunk, lease.token)]
        return [str(word) for word in self._run("renew", int(lease_seconds * 1000), *flat)]

    def complete(
        self,
        claim: Claim,
        *,
        ok: int,
        failed: int,
        codes: Mapping[str, int],
        stage_seconds: Mapping[str, float],
    ) -> str:
        """Tell that the part of a chunk is in place, with its counts.

        Returns:
            `done`; `finishing` or `ended` (it was the last one); `already`, `stale`, `cancelled` or
            `missing`; `incomplete`, if not all rows of a `redis://` job have been brought.
        """
        flat_codes = [part for code, count in codes.items() for part in (code, count)]
        flat_seconds = [part for stage, value in stage_seconds.items() for part in (stage, f"{value:.6f}")]
        return str(
            self._run(
                "complete", claim.job_id, claim.chunk_id, claim.token, claim.generation, ok, failed,
                len(codes), *flat_codes, *flat_seconds,
            )
        )  # fmt: skip

    def release(
        self,
        claim: Claim,
        kind: str,
        *,
        reason: str,
        first_back_off_seconds: float = 1.0,
        outage_seconds: float = 86400.0,
    ) -> str:
        """Give back for `failures`, `waits` or `drain`; answers `released`, `paused` or `not_held`."""
        answer = self._run(
            "release", claim.job_id, claim.chunk_id, claim.token, kind, int(first_back_off_seconds * 1000),
            reason, int(outage_seconds * 1000),
        )  # fmt: skip
        return str(answer[0])

    def reconcile(
        self, first_back_off_seconds: float = 2.0, worker_silence_seconds: float = 60.0
    ) -> tuple[int, int]:
        """Take back expired leases, forget silent workers; returns (chunks lost, jobs to be finished)."""
        lost, finishing = self._run(
            "reconcile", int(first_back_off_seconds * 1000), int(worker_silence_seconds * 1000)
        )
        return int(lost), int(finishing)

    def claim_finish(
        self, token: str, lease_seconds: float, excluded_jobs: Iterable[str] = ()
    ) -> FinishClaim | None:
        """Lease the finishing of a job whose chunks are all done."""
        answer = self._run("claim_finish", token, int(lease_seconds * 1000), *excluded_jobs)
        if not answer:
            return None
        job_id, generation, fingerprint, created_ms = answer
        return FinishClaim(token, job_id, int(generation), fingerprint, int(created_ms))

    def finish(self, claim: FinishClaim, *, ttl_seconds: int) -> str:
        """Tell that the manifest is written; answers the final state, `stale` or `missing`. Idempotent."""
        return str(self._run("finish", claim.job_id, claim.generation, ttl_seconds * 1000))

    def postpone_finish(
        self,
        claim: FinishClaim,
        delay_seconds: float,
        reason: str = "",
        *,
        outage_seconds: float = 86400.0,
        ttl_seconds: int = DEFAULT_RETENTION.job_seconds,
    ) -> str:
        """Try the finishing again later, by whoever comes first; the reason shows in the status.

        A job whose finishing fails for longer than an outage may last ends as failed: it can be retried then.

        Returns:
            `postponed`, `failed` or `not_held`.
        """
        return str(
            self._run(
                "postpone_finish", claim.job_id, claim.token, int(delay_seconds * 1000), reason,
                int(outage_seconds * 1000), ttl_seconds * 1000,
            )
        )  # fmt: skip

    def heartbeat(self, facts: WorkerFacts) -> None:
        """Tell that a worker is alive and what it serves."""
        self._run("heartbeat", facts.worker_id, json.dumps(_facts_dict(facts)))

    def farewell(self, worker_id: str) -> None:
        """Tell that a worker has ended; what it still holds is another matter. Idempotent."""
        self._run("farewell", worker_id)


_SLICE = 1000  # of a draft: no script holds up the others for long


def _slices(values: Sequence[Any]) -> list[Sequence[Any]]:
    return [values[start : start + _SLICE] for start in range(0, len(values), _SLICE)]


def _draft_counts(draft: Draft) -> list[int | str]:
    codes = [part for code, count in draft.codes.items() for part in (code, count)]
    return [draft.next_chunk, draft.ok, draft.failed, *codes]


def _not_found(job_id: str) -> JobNotFoundError:
    return JobNotFoundError(f"job {job_id!r} is not known here: `clipfleet jobs` lists the jobs")


def _conflict(job: Job, other_spec: str) -> str:
    try:
        differences = ", ".join(job.differences(read_job(other_spec)))
    except JobUnreadableError:
        differences = "written by another version of clipfleet"
    return (
        f"job {job.job_id!r} exists and differs in: {differences}. "
        "Choose another --job-id, or repeat the submit exactly as it was"
    )


def _pairs(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _status(job_id: str, answer: list[Any]) -> JobStatus:
    leased, due, codes, *flat = answer
    facts = _pairs(flat)
    stages = {name: value for name, value in facts.items() if name.startswith("seconds:")}
    return JobStatus(
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
        stage_seconds={name.removeprefix("seconds:"): float(value) for name, value in stages.items()},
        reason=facts["reason"],
        created_ms=int(facts["created_ms"]),
        finished_ms=int(facts["finished_ms"]) if "finished_ms" in facts else None,
    )


def _facts_dict(facts: WorkerFacts) -> dict[str, Any]:
    return {
        "worker_id": facts.worker_id,
        "host": facts.host,
        "pid": facts.pid,
        "models": list(facts.models),
        "device": facts.device,
        "extra": dict(facts.extra),
    }


def _facts(text: str) -> WorkerFacts:
    value = json.loads(text)
    return WorkerFacts(
        worker_id=value.get("worker_id", "?"),
        host=value.get("host", "?"),
        pid=value.get("pid", 0),
        models=tuple(value.get("models", ())),
        device=value.get("device", "cpu"),
        extra=value.get("extra", {}),
    )
