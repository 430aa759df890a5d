"""A ledger in the memory of one process, for tests and trials without Redis.

It answers as `Ledger` does, but stores no rows: those of a `redis://` job count as written.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import astuple, replace
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

from typing_extensions import override

from clipfleet.contract.bottleneck import NO_METERS, Meters
from clipfleet.contract.brief import JobBrief
from clipfleet.contract.jobs import Job, JobState, Lane
from clipfleet.contract.webhooks import DecisionEvent
from clipfleet.ledger.answers import (
    CompleteAnswer,
    FinishAnswer,
    PostponeAnswer,
    ReleaseAnswer,
    RenewAnswer,
    SealAnswer,
    StageAnswer,
)
from clipfleet.ledger.jobs import Ledger
from clipfleet.ledger.memory_drafts import MemoryDrafts
from clipfleet.ledger.memory_job import (
    CLAIMABLE,
    EARLY_ENDS,
    MOST_BACK_OFF_MS,
    MOST_WAIT_MS,
    MemoryChunk,
    MemoryJob,
    back_off,
)
from clipfleet.ledger.refusals import conflict, not_found, quota_exceeded
from clipfleet.ledger.status import JobStatus, UnfinishedJobs
from clipfleet.ledger.values import (
    DEFAULT_RETENTION,
    FINISH,
    NO_QUOTA,
    Backlog,
    Claim,
    FinishClaim,
    LaneBacklog,
    Lease,
    LeaseReport,
    Quota,
    Retention,
    WorkerFacts,
)
from clipfleet.redis.patience import Patience

_AGEING = 8  # every eighth claim tries the lanes from the bottom
C = TypeVar("C", bound=Callable[..., Any])


def _atomic(call: C) -> C:
    """Run a call while no other one runs, and wake those that wait for progress."""

    @functools.wraps(call)
    def locked(self: MemoryLedger, *args: Any, **kwargs: Any) -> Any:
        with self._condition:
            self._condition.notify_all()  # they go on when this call has ended
            return call(self, *args, **kwargs)

    return cast(C, locked)


class MemoryLedger(Ledger):
    """A ledger for one process, see `Ledger` and see `ChunkLedger`. `now` is its clock, in seconds."""

    def __init__(self, *, quota: Quota = NO_QUOTA, now: Callable[[], float] = time.time) -> None:
        self.quota = quota
        self._clock = now
        self._condition = threading.Condition()
        self._jobs: dict[str, MemoryJob] = {}
        self.drafts = MemoryDrafts(self._jobs, self._job, self._condition, self._now)
        self._turns = 0  # claims that found a chunk
        self._claimed: dict[str, tuple[str, int]] = {}  # by token
        self._finishes: dict[str, str] = {}  # by token
        self._workers: dict[str, tuple[int, WorkerFacts]] = {}
        self._early_end = ""
        self._ends: list[tuple[str, int]] = []  # job and generation, in the order in which they are noticed

    def _now(self) -> int:
        return int(self._clock() * 1000)

    def _job(self, job_id: str) -> MemoryJob | None:
        job = self._jobs.get(job_id)
        if job is not None and job.expires is not None and job.expires <= self._now():
            del self._jobs[job_id]
            return None
        return job

    def _known(self, job_id: str) -> MemoryJob:
        job = self._job(job_id)
        if job is None:
            raise not_found(job_id)
        return job

    def _all(self) -> list[MemoryJob]:
        return [job for job_id in list(self._jobs) if (job := self._job(job_id)) is not None]

    @override
    def close(self) -> None: ...

    @override
    def with_patience(self, patience: Patience) -> Ledger:
        return self

    @override
    def ping(self) -> None: ...

    # --- the producer's side ---

    def _require_room(self, more_items: int) -> None:
        waiting = more_items + sum(job.open_items for job in self._all() if not job.state.is_final)
        if 0 < self.quota.items < waiting:
            raise quota_exceeded(self.quota, "items", waiting)

    @override
    @_atomic
    def submit(
        self, job: Job, retention: Retention = DEFAULT_RETENTION, traceparent: str = ""
    ) -> tuple[bool, JobState]:
        known = self._job(job.job_id)
        if known is not None:
            if known.job.fingerprint != job.fingerprint:
                raise conflict(job, known.job.model_dump_json())
            return False, known.state
        self._require_room(1)
        self._jobs[job.job_id] = MemoryJob(
            job, self._now(), traceparent, retention, max_error_rate=job.max_error_rate
        )
        return True, JobState.SUBMITTING

    @override
    @_atomic
    def stage(self, job_id: str, first_chunk: int, chunks: int, items: int) -> StageAnswer:
        job = self._job(job_id)
        if job is None:
            return StageAnswer.REFUSED
        if (first_chunk, chunks) in job.files:
            return StageAnswer.KNOWN
        if job.state not in (JobState.SUBMITTING, JobState.PAUSED) or job.sealed:
            return StageAnswer.REFUSED
        if first_chunk != len(job.chunks):
            return StageAnswer.GAP
        self._require_room(items)
        job.files.append((first_chunk, chunks))
        job.chunks += [MemoryChunk() for _ in range(chunks)]
        job.items += items
        job.end_starving(self._now())
        return StageAnswer.STAGED

    @override
    @_atomic
    def staged_files(self, job_id: str) -> list[tuple[int, int]]:
        job = self._job(job_id)
        return list(job.files) if job else []

    @override
    @_atomic
    def seal(self, job_id: str, chunks: int, items: int, source_sum: str = "") -> SealAnswer:
        job = self._job(job_id)
        if job is None:
            return SealAnswer.REFUSED
        if (chunks, items) != (len(job.chunks), job.items):
            return SealAnswer.MISMATCH
        if job.sealed:
            return SealAnswer.SEALED
        if job.state.is_final:
            return SealAnswer.REFUSED
        job.sealed, job.source_sum = True, source_sum
        job.end_starving(self._now())
        if job.state is JobState.SUBMITTING:
            job.state = JobState.RUNNING
        job.finish_if_done(self._now())
        return SealAnswer.SEALED

    def _end(self, job: MemoryJob, state: JobState, reason: str, ttl_seconds: float) -> None:
        now = self._now()
        job.end(state, reason, now, ttl_seconds)
        if state in EARLY_ENDS:
            self._early_end = f"{job.job.job_id}:{now}"

    @override
    @_atomic
    def cancel(self, job_id: str, *, ttl_seconds: int) -> tuple[bool, JobState]:
        job = self._known(job_id)
        if job.state.is_final or job.state is JobState.FINISHING:
            return False, job.state
        self._end(job, JobState.CANCELLED, "", ttl_seconds)
        return True, job.state

    @override
    @_atomic
    def fail(
        self, job_id: str, reason: str, *, ttl_seconds: int, holder: Claim | FinishClaim | None = None
    ) -> None:
        job = self._job(job_id)
        if job is None:
            return
        if holder is not None:
            job.writers.pop(holder.token, None)
        if job.state.is_final or (holder is not None and not self._holds(job, holder)):
            return
        self._end(job, JobState.FAILED, reason, ttl_seconds)
        if holder is not None:
            job.writers.pop(holder.token, None)

    def _holds(self, job: MemoryJob, claim: Claim | FinishClaim) -> bool:
        if isinstance(claim, FinishClaim):
            return job.finish_token == claim.token
        return claim.chunk_id < len(job.chunks) and job.chunks[claim.chunk_id].owner == claim.token

    @override
    @_atomic
    def writers(self, job_id: str, write_limit_seconds: float) -> tuple[int, float]:
        job, now = self._job(job_id), self._now()
        limit = int(write_limit_seconds * 1000)
        deadlines = [deadline for deadline in job.writers.values() if deadline >= now - limit] if job else []
        return len(deadlines), (max(deadlines) + limit - now) / 1000 if deadlines else 0.0

    @override
    @_atomic
    def pause(self, job_id: str, reason: str) -> tuple[bool, JobState]:
        job = self._known(job_id)
        if job.state not in CLAIMABLE:
            return False, job.state
        job.state, job.reason = JobState.PAUSED, reason
        return True, job.state

    @override
    @_atomic
    def resume(self, job_id: str) -> tuple[bool, JobState]:
        job, now = self._known(job_id), self._now()
        if job.state is not JobState.PAUSED:
            return False, job.state
        job.state = JobState.RUNNING if job.sealed else JobState.SUBMITTING
        job.reason, job.outage_since = "", None
        for number in job.due():
            chunk = job.chunks[number]
            chunk.due = min(now, chunk.due or 0)
        job.finish_if_done(now)
        return True, job.state

    @override
    @_atomic
    def job(self, job_id: str) -> Job:
        return self._known(job_id).job

    @override
    def description(self, job_id: str) -> str:
        return self.job(job_id).model_dump_json()

    @override
    @_atomic
    def status(self, job_id: str) -> JobStatus:
        return self._known(job_id).status(self._now())

    @override
    @_atomic
    def jobs(self, limit: int = 50) -> list[JobStatus]:
        newest = sorted(self._all(), key=lambda job: (job.created, job.job.job_id), reverse=True)
        return [replace(job.status(self._now()), brief=JobBrief.of(job.job)) for job in newest[:limit]]

    @override
    @_atomic
    def unfinished(self, limit: int = 100, also: Collection[str] = ()) -> UnfinishedJobs:
        listed = self.jobs(sys.maxsize)
        unfinished = [status for status in listed if not status.state.is_final]
        newest = unfinished[:limit]
        others = [status for status in listed if status.job_id in also and status not in newest]
        return UnfinishedJobs((*newest, *others), len(unfinished) - len(newest))

    @override
    @_atomic
    def backlog(self, keep_seconds: float = 10.0) -> Backlog:
        jobs, now = self._all(), self._now()
        active = [job for job in jobs if job.state in CLAIMABLE]
        oldest_due = min((job.oldest_due(now) for job in active), default=now)
        outages = [job.outage_since for job in active if job.outage_since is not None]
        return Backlog(
            lanes={lane: _sum(job.backlog for job in active if job.job.lane is lane) for lane in Lane},
            jobs={state: sum(job.state is state for job in jobs) for state in JobState},
            oldest_due_seconds=(now - oldest_due) / 1000,
            outage_seconds=(now - min(outages, default=now)) / 1000,
            jobs_left_out=0,
        )

    @override
    @_atomic
    def last_progress(self, job_id: str) -> str:
        job = self._job(job_id)
        return f"{job.progress if job else 0}-0"

    @override
    def wait_for_progress(self, job_id: str, after: str, block_seconds: float) -> str:
        def is_later() -> bool:
            return _stream_id(self.last_progress(job_id)) > _stream_id(after)

        with self._condition:
            found = self._condition.wait_for(is_later, min(block_seconds, 5))
            return self.last_progress(job_id) if found else after

    @override
    @_atomic
    def last_end(self) -> str:
        return f"{len(self._noticed_ends())}-0"

    @override
    def wait_for_ends(self, after: str, block_seconds: float) -> tuple[str, list[str]]:
        known = int(after.partition("-")[0])
        with self._condition:
            self._condition.wait_for(lambda: len(self._noticed_ends()) > known, min(block_seconds, 5))
            return f"{len(self._ends)}-0", [job_id for job_id, _ in self._ends[known:]]

    def _noticed_ends(self) -> list[tuple[str, int]]:
        ended = [(job.job.job_id, job.generation) for job in self._all() if job.state.is_final]
        self._ends += [one for one in ended if one not in self._ends]
        return self._ends

    @override
    @_atomic
    def workers(self, silence_seconds: float = 30) -> list[WorkerFacts]:
        now = self._now()
        heard = sorted(self._workers.items(), key=lambda pair: (pair[1][0], pair[0]))
        return [
            replace(facts, silent_seconds=(now - at) / 1000)
            for _, (at, facts) in heard
            if at >= now - int(silence_seconds * 1000)
        ]

    # --- the worker's side ---

    @override
    @_atomic
    def claim(
        self,
        token: str,
        lease_seconds: float,
        lanes: Sequence[Lane],
        models: Sequence[str],
        excluded_jobs: Iterable[str] = (),
    ) -> Claim | None:
        deadline = self._now() + int(lease_seconds * 1000)
        if token in self._claimed:
            job_id, number = self._claimed[token]
            job = self._job(job_id)
            if job is None or job.chunks[number].owner != token:
                return None
            job.chunks[number].deadline = deadline
            return self._answer(job, number, token, more=True)
        excluded = set(excluded_jobs)
        jobs = [
            job
            for job in self._all()
            if job.job.lane in lanes and job.job.model in models and job.job.job_id not in excluded
        ]
        found = self._next(jobs, lane_order(lanes, self._turns + 1), models)
        if found is None:
            return None
        number = found.claimable(self._now())[0]
        self._grant(found, number, token, deadline)
        return self._answer(found, number, token, more=self._next(jobs, lanes, models) is not None)

    def _grant(self, job: MemoryJob, number: int, token: str, deadline: int) -> None:
        self._turns += 1
        chunk = job.chunks[number]
        chunk.owner, chunk.deadline, chunk.due = token, deadline, None
        job.next_chunk, job.turn = max(job.next_chunk, number + 1), self._turns
        self._claimed[token] = (job.job.job_id, number)
        if not (job.sealed or job.claimable(self._now())) and job.starved_since is None:
            job.starved_since = self._now()

    def _next(
        self, jobs: Sequence[MemoryJob], lanes: Sequence[Lane], models: Sequence[str]
    ) -> MemoryJob | None:
        """The job of the first lane with work that has waited longest."""
        waiting = [job for job in jobs if job.claimable(self._now())]
        return min(
            waiting,
            key=lambda job: (
                lanes.index(job.job.lane),
                job.turn,
                models.index(job.job.model),
                job.job.job_id,
            ),
            default=None,
        )

    def _answer(self, job: MemoryJob, number: int, token: str, *, more: bool) -> Claim:
        first, chunks = next(file for file in job.files if file[0] <= number < sum(file))
        troubles = job.chunks[number].troubles
        return Claim(
            token=token, job_id=job.job.job_id, chunk_id=number, generation=job.generation,
            losses=troubles["losses"], failures=troubles["failures"], waits=troubles["waits"],
            job_fingerprint=job.job.fingerprint,
            first_chunk=first, chunks=chunks, more=more, chunk_size=job.job.chunk_size,
            retry_codes=job.retry_codes, job_created_ms=job.created, traceparent=job.traceparent,
        )  # fmt: skip

    @override
    @_atomic
    def renew(self, leases: Sequence[Lease], lease_seconds: float) -> list[RenewAnswer]:
        deadline = self._now() + int(lease_seconds * 1000)
        return [self._renew(lease, deadline) for lease in leases]

    def _renew(self, lease: Lease, deadline: int) -> RenewAnswer:
        job = self._job(lease.job_id)
        if job is None:
            return RenewAnswer.LOST
        if job.state not in EARLY_ENDS:
            if lease.chunk == FINISH:
                if job.finish_token == lease.token:
                    job.finish_due = deadline
                    return RenewAnswer.HELD
            elif (chunk := job.chunks[int(lease.chunk)]).owner == lease.token:
                chunk.deadline = deadline
                return RenewAnswer.PAUSED if job.state is JobState.PAUSED else RenewAnswer.HELD
        if lease.token in job.writers:
            job.writers[lease.token] = deadline
        return RenewAnswer.CANCELLED if job.state in EARLY_ENDS else RenewAnswer.LOST

    @override
    @_atomic
    def report(self, reports: Sequence[LeaseReport], ended: Sequence[Lease] = ()) -> None:
        for one in reports:
            chunk = self._held_chunk(one.lease)
            if chunk is not None:
                chunk.settled, chunk.doing = one.settled, one.doing
        for lease in ended:
            chunk = self._held_chunk(lease)
            if chunk is not None:
                chunk.forget_report()

    def _held_chunk(self, lease: Lease) -> MemoryChunk | None:
        job = self._job(lease.job_id)
        number = int(lease.chunk)
        if job is None or number >= len(job.chunks) or job.chunks[number].owner != lease.token:
            return None
        return job.chunks[number]

    @override
    def last_early_end(self) -> str:
        return self._early_end

    @override
    @_atomic
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
        decisions: Sequence[DecisionEvent] | None = None,
    ) -> CompleteAnswer:
        job, now = self._job(claim.job_id), self._now()
        if job is None or claim.chunk_id >= job.next_chunk:
            return CompleteAnswer.MISSING
        chunk = job.chunks[claim.chunk_id]
        job.writers.pop(claim.token, None)
        if job.state in EARLY_ENDS:
            return CompleteAnswer.CANCELLED
        if claim.generation != job.generation:
            return CompleteAnswer.STALE
        if chunk.is_done:
            return CompleteAnswer.ALREADY
        if chunk.owner not in ("", claim.token):
            job.note_writer(chunk.owner, chunk.deadline)
        chunk.put_back(None)
        chunk.is_done = True
        if decisions is not None:
            chunk.decided = claim.generation
        chunk.troubles.clear()
        job.ok, job.failed, job.progress = job.ok + ok, job.failed + failed, job.progress + 1
        run, run_failed = ran or (ok + failed, failed)
        job.ran, job.ran_failed = job.ran + run, job.ran_failed + run_failed
        job.codes.update(codes)
        _add(job.seconds, work_seconds)
        _add(job.meters, meters.seconds)
        job.end_outage()
        if job.finish_if_done(now):
            return CompleteAnswer.ENDED if job.state.is_final else CompleteAnswer.FINISHING
        if reason := job.why_stop():
            self._end(job, JobState.CANCELLED, reason, ttl_seconds)
            return CompleteAnswer.STOPPED
        return CompleteAnswer.DONE

    @override
    @_atomic
    def decided(self, job_id: str, chunk: int) -> int:
        return self.decided_chunks(job_id).get(chunk, -1)

    @override
    @_atomic
    def decided_chunks(self, job_id: str) -> dict[int, int]:
        job = self._job(job_id)
        chunks = enumerate(job.chunks) if job else ()
        return {number: chunk.decided for number, chunk in chunks if chunk.decided >= 0}

    @override
    @_atomic
    def release(
        self,
        claim: Claim,
        kind: str,
        *,
        reason: str,
        first_back_off_seconds: float = 1.0,
        outage_seconds: float = 86400.0,
    ) -> ReleaseAnswer:
        job, now = self._job(claim.job_id), self._now()
        if job is None:
            return ReleaseAnswer.NOT_HELD
        job.writers.pop(claim.token, None)
        if not self._holds(job, claim):
            return ReleaseAnswer.NOT_HELD
        chunk = job.chunks[claim.chunk_id]
        counted = "waits" if kind == "drain" else kind
        chunk.troubles[counted] += 1
        most_ms = MOST_WAIT_MS if kind == "waits" else MOST_BACK_OFF_MS
        wait = back_off(first_back_off_seconds, chunk.troubles[counted], most_ms)
        chunk.put_back(now if kind == "drain" else now + wait)
        if kind == "waits" and job.state in CLAIMABLE and job.note_outage(reason, now, outage_seconds):
            job.state = JobState.PAUSED
            return ReleaseAnswer.PAUSED
        return ReleaseAnswer.RELEASED

    @override
    @_atomic
    def reconcile(
        self,
        first_back_off_seconds: float = 2.0,
        worker_silence_seconds: float = 60.0,
        lease_seconds: float = 30.0,
        period_seconds: float = 5.0,
    ) -> tuple[int, int]:
        """Ignores gaps between calls: there is no Redis that could have been unavailable."""
        now, lost = self._now(), 0
        for job in self._all():
            for _, chunk in job.leased:
                if chunk.deadline <= now:
                    lost += 1
                    job.note_writer(chunk.owner, now)
                    chunk.troubles["losses"] += 1
                    again = chunk.troubles["losses"] - 1
                    wait = back_off(first_back_off_seconds, again, MOST_BACK_OFF_MS) if again else 0
                    chunk.put_back(now + wait)
        earliest = now - int(worker_silence_seconds * 1000)
        self._workers = {name: heard for name, heard in self._workers.items() if heard[0] > earliest}
        return lost, len(self._finishable())

    def _finishable(self) -> list[MemoryJob]:
        due = [(job.finish_due, job.job.job_id) for job in self._all() if job.finish_due is not None]
        return [self._jobs[job_id] for at, job_id in sorted(due) if at <= self._now()]

    @override
    @_atomic
    def claim_finish(
        self, token: str, lease_seconds: float, excluded_jobs: Iterable[str] = ()
    ) -> FinishClaim | None:
        excluded = set(excluded_jobs)
        if token in self._finishes:
            earlier = self._job(self._finishes[token])
            candidates = [earlier] if earlier and earlier.finish_token == token else []
        else:
            candidates = self._finishable()
        job = next((job for job in candidates if job.job.job_id not in excluded), None)
        if job is None:
            return None
        if job.finish_token not in ("", token):
            job.note_writer(job.finish_token, self._now())
        job.finish_token, job.finish_due = token, self._now() + int(lease_seconds * 1000)
        self._finishes[token] = job.job.job_id
        return FinishClaim(token, job.job.job_id, job.generation, job.job.fingerprint, job.created)

    @override
    @_atomic
    def finish(self, claim: FinishClaim, *, ttl_seconds: int) -> FinishAnswer:
        job = self._job(claim.job_id)
        if job is None:
            return FinishAnswer.MISSING
        job.writers.pop(claim.token, None)
        if claim.generation != job.generation or not (job.state.is_final or job.state is JobState.FINISHING):
            return FinishAnswer.STALE
        if not job.state.is_final:
            self._end(job, job.final_state, "", ttl_seconds)
            job.writers.pop(claim.token, None)
        return FinishAnswer(job.state)

    @override
    @_atomic
    def postpone_finish(
        self,
        claim: FinishClaim,
        delay_seconds: float,
        reason: str = "",
        *,
        outage_seconds: float = 86400.0,
        ttl_seconds: int = DEFAULT_RETENTION.job_seconds,
        is_lasting: bool = False,
    ) -> PostponeAnswer:
        job, now = self._job(claim.job_id), self._now()
        if job is None:
            return PostponeAnswer.NOT_HELD
        job.writers.pop(claim.token, None)
        if job.state is not JobState.FINISHING or not self._holds(job, claim):
            return PostponeAnswer.NOT_HELD
        job.finish_token = ""
        if not reason:
            job.reason = ""
        elif job.note_outage(reason, now, outage_seconds):
            if is_lasting:
                self._end(job, JobState.FAILED, reason, ttl_seconds)
                return PostponeAnswer.FAILED
            job.state, job.finish_due = JobState.PAUSED, None
            return PostponeAnswer.PAUSED
        job.finish_due = now + int(delay_seconds * 1000)
        return PostponeAnswer.POSTPONED

    @override
    def now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

    @override
    @_atomic
    def pin_model(self, job_id: str, fingerprint: str = "") -> str:
        found = self._job(job_id)
        if found is None:
            return ""
        found.fingerprint_of_vectors = found.fingerprint_of_vectors or fingerprint
        return found.fingerprint_of_vectors

    @override
    @_atomic
    def heartbeat(self, facts: WorkerFacts) -> None:
        self._workers[facts.worker_id] = (self._now(), facts)

    @override
    @_atomic
    def farewell(self, worker_id: str) -> None:
        self._workers.pop(worker_id, None)


def lane_order(lanes: Sequence[Lane], turn: int) -> Sequence[Lane]:
    """The order in which a claim tries the lanes, which are given best first."""
    if turn % _AGEING:
        return lanes
    lowest, *others = reversed(lanes)
    return lanes[::-1] if turn % (2 * _AGEING) or len(lanes) < 3 else [others[0], lowest, *others[1:]]


def _stream_id(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split("-")))


def _add(sums: dict[str, float], more: Mapping[str, float]) -> None:
    for name, value in more.items():
        sums[name] = sums.get(name, 0.0) + value


def _sum(backlogs: Iterable[LaneBacklog]) -> LaneBacklog:
    counts = zip(*(astuple(backlog) for backlog in backlogs), strict=True)
    return LaneBacklog(*(sum(column) for column in counts))
