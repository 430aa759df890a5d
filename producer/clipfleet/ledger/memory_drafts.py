"""Retry and rebuild in a `MemoryLedger`."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime

from typing_extensions import override

from clipfleet.contract.jobs import Job, JobState
from clipfleet.ledger.answers import RebuildAnswer, RetryAnswer
from clipfleet.ledger.drafts import Drafts
from clipfleet.ledger.memory_job import MemoryChunk, MemoryJob
from clipfleet.ledger.values import Draft


class MemoryDrafts(Drafts):
    """Changes the jobs of a ledger under its lock; `now` is its clock, in ms."""

    def __init__(
        self,
        jobs: dict[str, MemoryJob],
        job: Callable[[str], MemoryJob | None],
        lock: threading.Condition,
        now: Callable[[], int],
    ) -> None:
        self._jobs = jobs
        self._job = job  # one that has not expired
        self._lock = lock
        self._now = now
        self._begun: dict[str, str] = {}  # job id -> token of the draft that began last

    @override
    def begin(self, job_id: str, token: str) -> None:
        self._begun[job_id] = token

    @override
    def note(self, job_id: str, token: str, draft: Draft) -> bool:
        job = self._job(job_id)
        return token in (self._begun.get(job_id), job and job.draft)

    @override
    def retry(
        self,
        job_id: str,
        token: str,
        draft: Draft,
        *,
        generation: int,
        codes: Sequence[str] = (),
        max_error_rate: float | None = None,
    ) -> tuple[RetryAnswer, JobState | None]:
        with self._lock:
            job = self._job(job_id)
            if not self.note(job_id, token, draft):
                return RetryAnswer.TAKEN, None
            if job is None:
                return RetryAnswer.MISSING, None
            if job.draft == token:
                return RetryAnswer.STARTED, job.state
            if not job.state.is_final:
                return RetryAnswer.REFUSED, job.state
            job.state = JobState.RUNNING if job.sealed else JobState.SUBMITTING
            job.generation, job.retry_codes, job.reason = generation, tuple(codes), ""
            job.outage_since = job.finished = job.expires = None
            if max_error_rate is not None:
                job.max_error_rate = max_error_rate
            self._put_in_place(job, token, draft)
            return RetryAnswer.STARTED, job.state

    @override
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
        fingerprint_of_vectors: str = "",
    ) -> tuple[RebuildAnswer, JobState | None]:
        with self._lock:
            known = self._job(job.job_id)
            if not self.note(job.job_id, token, draft):
                return RebuildAnswer.TAKEN, None
            if known is not None:
                return RebuildAnswer.REBUILT if known.draft == token else RebuildAnswer.EXISTS, known.state
            created = int(job.created_at.timestamp() * 1000)
            known = self._jobs[job.job_id] = MemoryJob(
                job, created, state=state, sealed=state is not JobState.SUBMITTING, source_sum=source_sum,
                files=list(draft.staged), items=items, generation=generation, retry_codes=tuple(codes),
                max_error_rate=job.max_error_rate, fingerprint_of_vectors=fingerprint_of_vectors,
            )  # fmt: skip
            known.chunks = [MemoryChunk() for _, count in draft.staged for _ in range(count)]
            if state.is_final:
                known.finished = int(finished_at.timestamp() * 1000) if finished_at else self._now()
                known.expires = self._now() + ttl_seconds * 1000
            self._put_in_place(known, token, draft)
            return RebuildAnswer.REBUILT, known.state

    def _put_in_place(self, job: MemoryJob, token: str, draft: Draft) -> None:
        del self._begun[job.job.job_id]
        job.draft, job.next_chunk, job.ok, job.failed = token, draft.next_chunk, draft.ok, draft.failed
        job.codes, job.meters = Counter(draft.codes), {}
        job.carried, job.ran, job.ran_failed = draft.ok + draft.failed, 0, 0
        job.starved_since, job.starved = None, 0
        due = set(draft.due)
        for number, chunk in enumerate(job.chunks):
            chunk.is_done = bool(draft.done[number // 8] & 0x80 >> number % 8)
            chunk.put_back(0 if number in due else None)
            chunk.troubles.clear()
        if not job.state.is_final:
            job.progress += 1
            job.finish_if_done(self._now())
