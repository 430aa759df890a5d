"""The state of every job and chunk, in Redis, changed only by the Lua scripts beside this file.

Each script is atomic and idempotent: redis-py repeats commands after a timeout, and a killed program starts
over. Times are the server's. Nothing here depends on Celery, outputs or models.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

import redis

from clipfleet.contract.jobs import Job, JobState, read_job
from clipfleet.errors import JobNotFoundError, JobUnreadableError
from clipfleet.ledger import keys
from clipfleet.ledger.answers import (
    MISSING,
    SealAnswer,
    StageAnswer,
    SubmitAnswer,
)
from clipfleet.ledger.arguments import brief_argument, rate_argument
from clipfleet.ledger.chunks import ChunkLedger
from clipfleet.ledger.drafts import Drafts
from clipfleet.ledger.refusals import conflict, not_found, quota_exceeded
from clipfleet.ledger.status import JobStatus, UnfinishedJobs
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
    Lease,
    LeaseReport,
    Quota,
    Retention,
    WorkerFacts,
)
from clipfleet.redis.connection import damage_of, redis_errors
from clipfleet.redis.patience import Patience, patient

__all__ = [
    "DEFAULT_RETENTION", "FINISH", "MAX_FAILURES", "MAX_LOSSES", "Backlog", "Claim", "Draft", "FinishClaim",
    "JobStatus", "Lease", "LeaseReport", "Ledger", "Quota", "Retention", "WorkerFacts",
]  # fmt: skip

_LISTED_AT_A_TIME = 100
_MOST_ENDS = 1000  # of jobs, in one answer
_MOST_COUNTED_JOBS = 5_000  # by `backlog`: they block Redis for some 20 ms


class Ledger(ChunkLedger):
    """All of the ledger: jobs for producers, chunks for workers."""

    def __init__(self, url: str, *, client: redis.Redis | None = None, quota: Quota = NO_QUOTA) -> None:
        super().__init__(url, client=client)
        self.quota = quota  # the limit of `submit` and `stage`
        self.drafts = Drafts(self._run, self.status)

    def with_patience(self, patience: Patience) -> Ledger:
        """The same ledger on the same connections, whose calls wait while Redis is unavailable."""
        return Ledger(self._url, client=patient(self._redis, patience), quota=self.quota)

    def submit(
        self, job: Job, retention: Retention = DEFAULT_RETENTION, traceparent: str = ""
    ) -> tuple[bool, JobState]:
        """Add a job.

        Args:
            job: the job.
            retention: of a job whose output is `redis://`; `finish` sets that of every other job.
            traceparent: the parent span of its chunks; stored with a new job only.

        Returns:
            Whether it is new, and its state. An equal job of this id is not changed: its submit resumes.

        Raises:
            JobConflictError: a different job has this id.
            QuotaExceededError: the quota has no room for a new job.
        """
        spec = job.model_dump_json()
        answer = self._run(
            "submit",
            job.job_id,
            spec,
            job.fingerprint,
            job.lane.value,
            job.model,
            job.chunk_size,
            rate_argument(job.max_error_rate),
            self.quota.items,
            self.quota.bytes,
            traceparent,
            brief_argument(job, spec),
            *(retention.milliseconds if job.output_is_redis else ()),
        )
        match SubmitAnswer(answer[0]):
            case SubmitAnswer.CREATED:
                return True, JobState.SUBMITTING
            case SubmitAnswer.QUOTA:
                raise quota_exceeded(self.quota, *answer[1:])
        _, state, fingerprint, other_spec = answer
        if fingerprint != job.fingerprint:
            raise conflict(job, other_spec or "")
        with damage_of(job.job_id):
            return False, JobState(state)

    def stage(self, job_id: str, first_chunk: int, chunks: int, items: int) -> StageAnswer:
        """Record a staged file that is in place, and make its chunks claimable. Idempotent.

        Raises:
            QuotaExceededError: the quota has no room for them now; nothing was changed.
        """
        quota = self.quota
        word, *over = self._run("stage", job_id, first_chunk, chunks, items, quota.items, quota.bytes)
        answer = StageAnswer(word)
        if answer is StageAnswer.QUOTA:
            raise quota_exceeded(quota, *over)
        return answer

    def staged_files(self, job_id: str) -> list[tuple[int, int]]:
        """`(first_chunk, chunks)` of each staged file, in order."""
        with damage_of(job_id):
            with redis_errors(self._url):
                members = self._redis.zrange(keys.job(job_id, keys.STAGED), 0, -1)
            pairs = (str(member).split("-") for member in members)
            return [(int(first), int(chunks)) for first, chunks in pairs]

    def seal(self, job_id: str, chunks: int, items: int, source_sum: str = "") -> SealAnswer:
        """Record the end of the source. Idempotent.

        `source_sum` is what `JobStatus` has then, see `clipfleet.submit.contents.Contents`.
        """
        return SealAnswer(self._run("seal", job_id, chunks, items, source_sum)[0])

    def cancel(self, job_id: str, *, ttl_seconds: int) -> tuple[bool, JobState]:
        """End a job early.

        Returns:
            Whether the job was changed, and its state; a job that is finishing or over is not changed.

        Raises:
            JobNotFoundError: no such job.
        """
        return self._changed(job_id, self._run("cancel", job_id, "cancelled", "", ttl_seconds * 1000))

    def fail(
        self, job_id: str, reason: str, *, ttl_seconds: int, holder: Claim | FinishClaim | None = None
    ) -> None:
        """End a job because its rows cannot be written. Idempotent.

        With a `holder` the job ends only while that claim is held: another owner of the chunk may succeed.
        """
        who: tuple[int | str, ...] = ()
        if holder is not None:
            who = (holder.chunk_id if isinstance(holder, Claim) else FINISH, holder.token)
        self._run("cancel", job_id, "failed", reason, ttl_seconds * 1000, *who)

    def writers(self, job_id: str, write_limit_seconds: float) -> tuple[int, float]:
        """Number of workers that may still write to a job without a lease, and for how many seconds at most.

        Workers of an ended job are interrupted and report when they have stopped. A silent one counts until
        `write_limit_seconds` after the deadline of its lease.
        """
        count, left_ms = self._run("writers", job_id, int(write_limit_seconds * 1000))
        return int(count), max(0, int(left_ms)) / 1000

    def pause(self, job_id: str, reason: str) -> tuple[bool, JobState]:
        """Stop handing out chunks of a job; held chunks are completed. Returns what `cancel` does."""
        return self._changed(job_id, self._run("pause", job_id, "paused", reason))

    def resume(self, job_id: str) -> tuple[bool, JobState]:
        """Undo `pause`. Returns what `cancel` does."""
        return self._changed(job_id, self._run("pause", job_id, "running", ""))

    def _changed(self, job_id: str, answer: list[Any]) -> tuple[bool, JobState]:
        if answer[1] == MISSING:
            raise not_found(job_id)
        with damage_of(job_id):
            return bool(answer[0]), JobState(answer[1])

    def job(self, job_id: str) -> Job:
        """The whole job.

        Raises:
            JobNotFoundError: no such job.
            JobUnreadableError: another version of clipfleet submitted it.
        """
        return read_job(self.description(job_id))

    def description(self, job_id: str) -> str:
        """The JSON of a job as it was submitted, by any version.

        Raises:
            JobNotFoundError: no such job.
            JobUnreadableError: clipfleet has not written what is there.
        """
        with damage_of(job_id), redis_errors(self._url):
            spec: Any = self._redis.get(keys.job(job_id, keys.SPEC))
            spec = spec or self._redis.hget(keys.job(job_id), "spec")  # of an earlier version
        if spec is None:
            raise not_found(job_id)
        return str(spec)

    def status(self, job_id: str) -> JobStatus:
        """A snapshot of a job.

        Raises:
            JobNotFoundError: no such job.
            JobUnreadableError: clipfleet has not written what is there.
        """
        with damage_of(job_id):
            return _snapshot(job_id, self._run("status", job_id))

    def jobs(self, limit: int = 50) -> list[JobStatus]:
        """The newest jobs first. Expired jobs and foreign values do not count towards the limit.

        Takes two round trips per hundred jobs. Descriptions with many labels are not read, except those of
        jobs that an older version has submitted.
        """
        found: list[JobStatus] = []
        rank = 0
        while rank >= 0 and len(found) < limit:
            rank, *names = self._run("jobs", rank, min(limit - len(found), _LISTED_AT_A_TIME))
            found += self._snapshots(list(map(str, names)))
        return found

    def unfinished(self, limit: int = 100, also: Collection[str] = ()) -> UnfinishedJobs:
        """The newest unfinished jobs first, then those of `also` that are not among them.

        Takes two round trips. Jobs of `also` may have ended; those that have expired are left out.
        """
        left_out, *names = self._run("unfinished", limit)
        newest = [str(name) for name in names]
        jobs = self._snapshots([*newest, *(job_id for job_id in also if job_id not in newest)])
        return UnfinishedJobs(tuple(jobs), int(left_out))

    def _snapshots(self, job_ids: Sequence[str]) -> list[JobStatus]:
        found = []
        for job_id, answer in zip(job_ids, self._run_each("status", job_ids, "brief"), strict=True):
            with suppress(JobNotFoundError, JobUnreadableError):
                if isinstance(answer, Exception):
                    found.append(self.status(job_id))  # repairs what is damaged, or says what is wrong
                else:
                    with damage_of(job_id):
                        found.append(_snapshot(job_id, answer))
        return found

    def backlog(self, keep_seconds: float = 10.0) -> Backlog:
        """Pending and running work of all jobs, counted at most `keep_seconds` ago.

        The server counts once in that time, however many callers there are.
        """
        arguments = max(1, int(keep_seconds * 1000)), _MOST_COUNTED_JOBS
        try:
            return Backlog.of_answer(self._run("backlog", *arguments))
        except ValueError:  # a producer may have replaced it
            return Backlog.of_answer(self._run("backlog", *arguments, 1))

    def last_progress(self, job_id: str) -> str:
        """ID of the last entry of the job's stream, for `wait_for_progress`."""
        with damage_of(job_id), redis_errors(self._url):
            entries: Any = self._redis.xrevrange(keys.job(job_id, keys.STREAM), count=1)
        return str(entries[0][0]) if entries else "0-0"

    def wait_for_progress(self, job_id: str, after: str, block_seconds: float) -> str:
        """Block until the job's stream has an entry after this one; return the ID of the last entry.

        `after` is an earlier answer, or that of `last_progress` before the job's status was read. Returns
        `after` if no entry comes within `block_seconds` (at most 5).
        """
        block_ms = max(1, int(min(block_seconds, 5) * 1000))
        with damage_of(job_id), redis_errors(self._url):
            answer: Any = self._redis.xread({keys.job(job_id, keys.STREAM): after}, block=block_ms)
        if not answer:
            return after
        entries = next(iter(answer.values()))[0] if isinstance(answer, dict) else answer[0][1]
        return str(entries[-1][0])

    def last_end(self) -> str:
        """ID of the last entry of the stream of ended jobs, for `wait_for_ends`."""
        with redis_errors(self._url):
            entries: Any = self._redis.xrevrange(keys.EVENTS, count=1)
        return str(entries[0][0]) if entries else "0-0"

    def wait_for_ends(self, after: str, block_seconds: float) -> tuple[str, list[str]]:
        """Block until any job has ended after this entry; return the last entry, and the jobs.

        `after` is an earlier answer, or that of `last_end`. Returns `after` and no job if none ends within
        `block_seconds` (at most 5). A caller that was away for long may miss some: the stream is bounded.
        """
        block_ms = max(1, int(min(block_seconds, 5) * 1000))
        with redis_errors(self._url):
            answer: Any = self._redis.xread({keys.EVENTS: after}, count=_MOST_ENDS, block=block_ms)
        if not answer:
            return after, []
        entries = next(iter(answer.values()))[0] if isinstance(answer, dict) else answer[0][1]
        return str(entries[-1][0]), [str(fields.get("job_id", "")) for _, fields in entries]


def _snapshot(job_id: str, answer: Sequence[Any]) -> JobStatus:
    if not answer:
        raise not_found(job_id)
    return JobStatus.of_answer(job_id, answer)
