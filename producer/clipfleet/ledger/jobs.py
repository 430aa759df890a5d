"""The truth about every job and chunk, in Redis, changed only by the Lua scripts beside this file.

Each script is atomic and safe to run twice: redis-py repeats commands after a time-out, and a killed program
starts over. Times are the server's. Nothing here knows about Celery, outputs or models.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import redis

from clipfleet.contract.bottleneck import NO_METERS, Meters
from clipfleet.contract.jobs import Job, JobState, Lane, read_job
from clipfleet.errors import JobConflictError, JobNotFoundError, JobUnreadableError, QuotaExceededError
from clipfleet.ledger import keys
from clipfleet.ledger.scripts import LuaScripts
from clipfleet.ledger.values import (
    DEFAULT_RETENTION,
    FINISH,
    MAX_FAILURES,
    MAX_LOSSES,
    NO_QUOTA,
    Backlog,
    Claim,
    Draft,
    FinishClaim,
    JobStatus,
    Lease,
    Quota,
    Retention,
    WorkerFacts,
)
from clipfleet.redis.connection import connect, damage_of, redis_errors
from clipfleet.redis.patience import Patience, patient

__all__ = [
    "DEFAULT_RETENTION", "FINISH", "MAX_FAILURES", "MAX_LOSSES", "Backlog", "Claim", "Draft", "FinishClaim",
    "JobStatus", "Lease", "Ledger", "Quota", "Retention", "WorkerFacts",
]  # fmt: skip

_SCRIPTS = (
    "submit", "stage", "seal", "claim", "renew", "complete", "release", "reconcile", "claim_finish", "finish",
    "postpone_finish", "cancel", "pause", "status", "jobs", "heartbeat", "farewell", "workers", "backlog",
    "draft_begin", "draft_add", "retry", "rebuild", "writers",
)  # fmt: skip

_LISTED_AT_A_TIME = 500
_MOST_COUNTED_JOBS = 5_000  # of `backlog`: Redis takes some 20 ms for them, and serves nobody else


class Ledger:
    """All calls raise `RedisUnavailableError` while Redis is away."""

    def __init__(self, url: str, *, client: redis.Redis | None = None, quota: Quota = NO_QUOTA) -> None:
        self._url = url
        self.quota = quota  # what `submit` and `stage` keep to
        self._redis = client or connect(url)
        self._run = LuaScripts(self._redis, url, _SCRIPTS).run

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def with_patience(self, patience: Patience) -> Ledger:
        """The same ledger, whose calls wait out a Redis that is away; this one keeps the connections."""
        return Ledger(self._url, client=patient(self._redis, patience), quota=self.quota)

    def ping(self) -> None:
        """Raise `RedisUnavailableError` unless Redis answers."""
        with redis_errors(self._url):
            self._redis.ping()

    # --- the producer's side ---

    def submit(
        self, job: Job, retention: Retention = DEFAULT_RETENTION, traceparent: str = ""
    ) -> tuple[bool, JobState]:
        """Make a job known.

        Args:
            job: the job.
            retention: counts where the output is `redis://`; for any other `finish` says how long it is kept.
            traceparent: the span that its chunks are to be part of; kept with a job that is new.

        Returns:
            Whether it is new, and its state. An equal job of this id is returned as it is, to be resumed.

        Raises:
            JobConflictError: the id is taken by a job that differs.
            QuotaExceededError: so much waits already that there is no room for a new job.
        """
        answer = self._run(
            "submit",
            job.job_id,
            job.model_dump_json(),
            job.fingerprint,
            job.lane.value,
            job.model,
            job.chunk_size,
            _rate(job.max_error_rate),
            self.quota.items,
            self.quota.bytes,
            traceparent,
            *(retention.milliseconds if job.output_is_redis else ()),
        )
        if answer[0] == "created":
            return True, JobState.SUBMITTING
        if answer[0] == "quota":
            raise _quota_exceeded(self.quota, *answer[1:])
        _, state, fingerprint, spec = answer
        if fingerprint != job.fingerprint:
            raise JobConflictError(_conflict(job, spec or ""))
        with damage_of(job.job_id):
            return False, JobState(state)

    def stage(self, job_id: str, first_chunk: int, chunks: int, items: int) -> str:
        """Tell that the staged file of these chunks is in place; they may be claimed from now on.

        Returns:
            `staged`; `known`, for a repetition; `gap` or `refused`, and nothing was changed.

        Raises:
            QuotaExceededError: there is no room for them now; nothing was changed.
        """
        quota = self.quota
        word, *over = self._run("stage", job_id, first_chunk, chunks, items, quota.items, quota.bytes)
        if word == "quota":
            raise _quota_exceeded(quota, *over)
        return str(word)

    def staged_files(self, job_id: str) -> list[tuple[int, int]]:
        """`(first_chunk, chunks)` of each staged file, in order."""
        with damage_of(job_id):
            with redis_errors(self._url):
                members = self._redis.zrange(keys.job(job_id, keys.STAGED), 0, -1)
            pairs = (str(member).split("-") for member in members)
            return [(int(first), int(chunks)) for first, chunks in pairs]

    def seal(self, job_id: str, chunks: int, items: int, source_sum: str = "") -> str:
        """Record that the source has ended; answers `sealed`, `mismatch` or `refused`. Idempotent.

        `source_sum` is what `JobStatus` has then, see `clipfleet.submit.contents.Contents`.
        """
        return str(self._run("seal", job_id, chunks, items, source_sum)[0])

    def cancel(self, job_id: str, *, ttl_seconds: int) -> tuple[bool, JobState]:
        """End a job early; False and its state if it is finishing or over.

        Raises:
            JobNotFoundError: no such job.
        """
        return self._changed(job_id, self._run("cancel", job_id, "cancelled", "", ttl_seconds * 1000))

    def fail(
        self, job_id: str, reason: str, *, ttl_seconds: int, holder: Claim | FinishClaim | None = None
    ) -> None:
        """End a job because no rows can be written. Idempotent.

        With a `holder`, the job ends only while that claim is held: otherwise the current owner of the chunk
        may still succeed.
        """
        who: tuple[int | str, ...] = ()
        if holder is not None:
            who = (holder.chunk_id if isinstance(holder, Claim) else FINISH, holder.token)
        self._run("cancel", job_id, "failed", reason, ttl_seconds * 1000, *who)

    def writers(self, job_id: str, write_limit_seconds: float) -> tuple[int, float]:
        """How many workers may still be inside a write of a job without a lease, and for how many seconds.

        Those of an ended job are told to stop and say when they have; one that says nothing is not expected
        any more once the deadline of its lease and `write_limit_seconds` are over.
        """
        count, left_ms = self._run("writers", job_id, int(write_limit_seconds * 1000))
        return int(count), max(0, int(left_ms)) / 1000

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
        self,
        job_id: str,
        token: str,
        draft: Draft,
        *,
        generation: int,
        codes: Sequence[str] = (),
        max_error_rate: float | None = None,
    ) -> tuple[str, JobState | None]:
        """Have an ended job go on in a new generation. Idempotent.

        Args:
            job_id: the job.
            token: what `begin_draft` was given.
            draft: its chunks as the output shows them.
            generation: higher than that of every part.
            codes: error codes of the failed rows to run again; empty: all.
            max_error_rate: from now on in place of the job's own; None: that one stays.

        Returns:
            `started`, `refused` (it is not over), `taken` (another retry began after this one) or `missing`;
            and the state.

        Raises:
            JobUnreadableError: what Redis held of it was damaged, in a way that no retry makes up for.
        """
        if not self._note(job_id, token, draft):
            return "taken", None
        word, state = self._run(
            "retry", job_id, token, generation, ",".join(codes), _rate(max_error_rate), *_draft_counts(draft)
        )
        if word == "damaged":
            raise JobUnreadableError(f"job {job_id!r} cannot be retried: {self.status(job_id).reason}")
        with damage_of(job_id):
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
        source_sum: str = "",
        finished_at: datetime | None = None,
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
            source_sum: what `seal` was given.
            finished_at: when a job that is over ended, where that is known.

        Returns:
            `rebuilt`, `exists` or `taken` (another rebuild began after this one); and the state.
        """
        if not self._note(job.job_id, token, draft):
            return "taken", None
        chunks = sum(count for _, count in draft.staged)
        word, known = self._run(
            "rebuild", job.job_id, token, job.model_dump_json(), job.fingerprint, job.lane.value, job.model,
            job.chunk_size, _rate(job.max_error_rate), int(job.created_at.timestamp() * 1000), generation,
            ",".join(codes), state.value, chunks, items, ttl_seconds * 1000, source_sum,
            int(finished_at.timestamp() * 1000) if finished_at else "", *_draft_counts(draft),
        )  # fmt: skip
        with damage_of(job.job_id):
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
        with damage_of(job_id):
            return bool(answer[0]), JobState(answer[1])

    def job(self, job_id: str) -> Job:
        """The whole job.

        Raises:
            JobNotFoundError: no such job.
            JobUnreadableError: another version of clipfleet submitted it.
        """
        with damage_of(job_id), redis_errors(self._url):
            spec: Any = self._redis.get(keys.job(job_id, keys.SPEC))
            spec = spec or self._redis.hget(keys.job(job_id), "spec")  # where it was at first
        if spec is None:
            raise _not_found(job_id)
        return read_job(spec)

    def status(self, job_id: str) -> JobStatus:
        """A snapshot of a job.

        Raises:
            JobNotFoundError: no such job.
            JobUnreadableError: what is there is not of clipfleet.
        """
        with damage_of(job_id):
            answer = self._run("status", job_id)
            if answer:
                return JobStatus.of_answer(job_id, answer)
        raise _not_found(job_id)

    def jobs(self, limit: int = 50) -> list[JobStatus]:
        """The newest jobs first. Expired jobs and foreign values do not count towards the limit."""
        found: list[JobStatus] = []
        rank = 0
        while rank >= 0 and len(found) < limit:
            rank, *names = self._run("jobs", rank, min(limit - len(found), _LISTED_AT_A_TIME))
            for name in names:
                with suppress(JobNotFoundError, JobUnreadableError):
                    found.append(self.status(str(name)))
        return found

    def backlog(self, keep_seconds: float = 10.0) -> Backlog:
        """How much waits and runs, of all jobs together, as it was counted at most `keep_seconds` ago.

        Cheap to ask, whoever does and how often: the server counts once in that time.
        """
        arguments = max(1, int(keep_seconds * 1000)), _MOST_COUNTED_JOBS
        try:
            return Backlog.of_answer(self._run("backlog", *arguments))
        except ValueError:  # a producer may have put anything in its place
            return Backlog.of_answer(self._run("backlog", *arguments, 1))

    def last_progress(self, job_id: str) -> str:
        """Name of the last entry of the job's stream, for `wait_for_progress`."""
        with damage_of(job_id), redis_errors(self._url):
            entries: Any = self._redis.xrevrange(keys.job(job_id, keys.STREAM), count=1)
        return str(entries[0][0]) if entries else "0-0"

    def wait_for_progress(self, job_id: str, after: str, block_seconds: float) -> str:
        """Block until the job's stream has an entry after the one named; returns the last entry's name.

        `after` is an earlier answer, or `last_progress` as it was before the job was looked at. After
        `block_seconds` (at most 5) without news `after` itself comes back.
        """
        block_ms = max(1, int(min(block_seconds, 5) * 1000))
        with damage_of(job_id), redis_errors(self._url):
            answer: Any = self._redis.xread({keys.job(job_id, keys.STREAM): after}, block=block_ms)
        if not answer:
            return after
        entries = next(iter(answer.values()))[0] if isinstance(answer, dict) else answer[0][1]
        return str(entries[-1][0])

    def workers(self, silence_seconds: float = 30) -> list[WorkerFacts]:
        """Workers that were heard of within the given time."""
        workers = []
        for text in self._run("workers", int(silence_seconds * 1000)):
            with suppress(ValueError):  # written by no worker
                workers.append(WorkerFacts.of_json(text))
        return workers

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
        return Claim.of_answer(token, answer) if answer else None

    def renew(self, leases: Sequence[Lease], lease_seconds: float) -> list[str]:
        """Prolong leases; one word each: `held`, `paused`, `lost` or `cancelled`."""
        if not leases:
            return []
        flat = [part for lease in leases for part in (lease.job_id, lease.chunk, lease.token)]
        return [str(word) for word in self._run("renew", int(lease_seconds * 1000), *flat)]

    def last_early_end(self) -> str:
        """A text that changes whenever a job is cancelled or fails; cheap enough to poll every second."""
        with redis_errors(self._url):
            return str(self._redis.get(keys.EARLY_END))

    def complete(
        self,
        claim: Claim,
        *,
        ok: int,
        failed: int,
        codes: Mapping[str, int],
        work_seconds: Mapping[str, float],
        ran: tuple[int, int] | None = None,
        meters: Meters = NO_METERS,
        ttl_seconds: int = DEFAULT_RETENTION.job_seconds,
    ) -> str:
        """Tell that the part of a chunk is in place, with its counts.

        Args:
            claim: the chunk.
            ok: good rows of its part.
            failed: failed rows of its part.
            codes: failed rows by error code.
            work_seconds: working time by step.
            ran: how many rows were run for it, and how many of them failed, where a retry kept others; by
                default all rows of the part.
            meters: where the time of the chunk went.
            ttl_seconds: how long a job is kept that ends by this.

        Returns:
            `done`; `finishing` or `ended` (it was the last one); `stopped` (too many rows have failed, and
            the job has ended as `cancelled`); `already`, `stale`, `cancelled` or `missing`; `incomplete`, if
            not all rows of a `redis://` job have been brought.
        """
        return str(
            self._run(
                "complete", claim.job_id, claim.chunk_id, claim.token, claim.generation, ok, failed,
                *(ran or (ok + failed, failed)), ttl_seconds * 1000, int(claim.has_history),
                _measured(work_seconds, meters), *_flat(codes),
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
        self,
        first_back_off_seconds: float = 2.0,
        worker_silence_seconds: float = 60.0,
        lease_seconds: float = 30.0,
        period_seconds: float = 5.0,
    ) -> tuple[int, int]:
        """Take back expired leases, forget silent workers; to be called by every worker in each period.

        A time in which nobody has called it for more than half a lease, and for two periods, because Redis
        was away, is no time: leases run on after it.

        Returns:
            Chunks lost, and jobs to be finished.
        """
        lost, finishing = self._run(
            "reconcile", int(first_back_off_seconds * 1000), int(worker_silence_seconds * 1000),
            int(lease_seconds * 1000), int(period_seconds * 1000),
        )  # fmt: skip
        return int(lost), int(finishing)

    def claim_finish(
        self, token: str, lease_seconds: float, excluded_jobs: Iterable[str] = ()
    ) -> FinishClaim | None:
        """Lease the finishing of a job whose chunks are all done."""
        answer = self._run("claim_finish", token, int(lease_seconds * 1000), *excluded_jobs)
        return FinishClaim.of_answer(token, answer) if answer else None

    def finish(self, claim: FinishClaim, *, ttl_seconds: int) -> str:
        """Tell that the manifest is written; answers the final state, `stale` or `missing`. Idempotent."""
        return str(self._run("finish", claim.job_id, claim.generation, ttl_seconds * 1000, claim.token))

    def postpone_finish(
        self,
        claim: FinishClaim,
        delay_seconds: float,
        reason: str = "",
        *,
        outage_seconds: float = 86400.0,
        ttl_seconds: int = DEFAULT_RETENTION.job_seconds,
        is_lasting: bool = False,
    ) -> str:
        """Try the finishing again later, by whoever comes first; the reason shows in the status.

        A job whose finishing fails for longer than an outage may last is paused, to be resumed. If the
        trouble `is_lasting` (a part is gone), it ends as failed: it can be retried then.

        Returns:
            `postponed`, `paused`, `failed` or `not_held`.
        """
        return str(
            self._run(
                "postpone_finish", claim.job_id, claim.token, int(delay_seconds * 1000), reason,
                int(outage_seconds * 1000), ttl_seconds * 1000, "failed" if is_lasting else "paused",
            )
        )  # fmt: skip

    def heartbeat(self, facts: WorkerFacts) -> None:
        """Tell that a worker is alive and what it serves."""
        self._run("heartbeat", facts.worker_id, facts.to_json())

    def farewell(self, worker_id: str) -> None:
        """Tell that a worker has ended; what it still holds is another matter. Idempotent."""
        self._run("farewell", worker_id)


_SLICE = 1000  # of a draft: no script holds up the others for long


def _slices(values: Sequence[Any]) -> list[Sequence[Any]]:
    return [values[start : start + _SLICE] for start in range(0, len(values), _SLICE)]


def _rate(rate: float | None) -> float | str:
    return "" if rate is None else rate


def _draft_counts(draft: Draft) -> list[int | str]:
    return [draft.next_chunk, draft.ok, draft.failed, *_flat(draft.codes)]


def _flat(pairs: Mapping[str, str | int]) -> list[str | int]:
    return [part for pair in pairs.items() for part in pair]


def _measured(work_seconds: Mapping[str, float], meters: Meters) -> str:
    """As `measured.lua` takes it; empty where there is nothing."""
    told: dict[str, Mapping[str, float | str]] = {}
    if work_seconds:
        told["seconds"] = {step: round(value, 6) for step, value in work_seconds.items()}
    if meters.seconds:
        told["meters"] = meters.to_facts()
    return json.dumps(told, separators=(",", ":")) if told else ""


def _not_found(job_id: str) -> JobNotFoundError:
    return JobNotFoundError(f"job {job_id!r} is not known here: `clipfleet jobs` lists the jobs")


def _quota_exceeded(quota: Quota, which: str, used: int) -> QuotaExceededError:
    what, limit = {
        "items": ("items would wait to be done", quota.items),
        "bytes": ("bytes of jobs without an output are kept in Redis", quota.bytes),
    }[which]
    return QuotaExceededError(
        f"{int(used):,} {what}, CLIPFLEET_QUOTA_{which.upper()} allows {limit:,}: "
        "wait until workers have done some, cancel a job, or raise the quota"
    )


def _conflict(job: Job, other_spec: str) -> str:
    try:
        differences = ", ".join(job.differences(read_job(other_spec)))
    except JobUnreadableError:
        differences = "written by another version of clipfleet"
    return (
        f"job {job.job_id!r} exists and differs in: {differences}. "
        "Choose another --job-id, or repeat the submit exactly as it was"
    )
