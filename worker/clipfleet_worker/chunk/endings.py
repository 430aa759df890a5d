"""How a chunk ends: with a part, released to another worker, or with the end of its job.

The ledger records every end. While Redis is away the record is retried until the worker drains; then the
lease expires, and another worker claims the chunk.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TypeVar

from clipfleet.contract.jobs import ErrorCode, ItemError
from clipfleet.errors import (
    JobNotFoundError,
    JobUnreadableError,
    OutputConflictError,
    OutputDamagedError,
    OutputRefusedError,
    OutputTooNewError,
    OutputUnavailableError,
    OutputUnreachableError,
    RedisUnavailableError,
    SourceUnavailableError,
)
from clipfleet.ledger.answers import CompleteAnswer, PostponeAnswer, ReleaseAnswer, RenewAnswer
from clipfleet.ledger.jobs import MAX_FAILURES, Claim, FinishClaim, Ledger, WorkerFacts
from clipfleet_worker.chunk.held_chunk import HeldChunk
from clipfleet_worker.chunk.pipeline import ChunkResult
from clipfleet_worker.chunk.tally import ChunkEnd, ChunkTally
from clipfleet_worker.encode.batcher import BatcherStopped
from clipfleet_worker.failures import (
    ChunkInterrupted,
    ChunkLostError,
    ModelMismatchError,
    WorkerShortageError,
)
from clipfleet_worker.models.cache import Models
from clipfleet_worker.process.shortages import shortage_behind

log = logging.getLogger(__name__)
T = TypeVar("T")

_AWAY = (OutputUnavailableError, SourceUnavailableError, WorkerShortageError)  # for all chunks of the job
_OF_THE_WORLD = (*_AWAY, RedisUnavailableError, MemoryError)
_INTERRUPTED: dict[str, ChunkEnd] = {  # by the reason of the interruption
    RenewAnswer.LOST: ChunkEnd.LOST,
    RenewAnswer.CANCELLED: ChunkEnd.CANCELLED,
}
_RETRY_SECONDS = 1.0  # while Redis is away
_POSTPONE_SECONDS = 5.0
_LAST_FAILURE = 2 * MAX_FAILURES  # after the first five a chunk is given up; that may fail as often again
_FAULTY_FINISH_SECONDS = 600.0  # then the job is paused, and its user reads the reason
_SHUN_SECONDS = 60.0  # for a job whose output this worker cannot reach
_REFUSED_SECONDS = 15.0  # for one that it must not use: by then the others' heartbeats show what they refuse
_MOST_REFUSED = 100  # jobs in a heartbeat
_WAIT_SECONDS = (1.0, 15.0)  # for an output that is away for now: at first, and at most
_LONE_WAIT_SECONDS = 2.0  # at most, for a mount that only this worker needs: the job fails in half a minute


class ShunnedJobs:
    """Jobs that this worker does not claim for a while."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._until: dict[str, float] = {}
        self._waits: dict[str, float] = {}  # seconds of the last `wait` of each job

    def add(self, job_id: str, seconds: float = _SHUN_SECONDS) -> None:
        """Shun a job for so long."""
        self._until[job_id] = self._monotonic() + seconds

    def wait(self, job_id: str, most: float = _WAIT_SECONDS[1]) -> None:
        """Shun a job, longer each time up to this: else all its chunks would be tried in vain."""
        if job_id not in self.current():
            first = _WAIT_SECONDS[0]
            self._waits[job_id] = min(most, 2 * self._waits.get(job_id, first / 2))
            self._until[job_id] = self._monotonic() + self._waits[job_id]

    def forget(self, job_id: str) -> None:
        """Reset the back-off of a job, one of whose chunks is complete."""
        self._waits.pop(job_id, None)

    def current(self) -> list[str]:
        """Jobs to shun now."""
        now = self._monotonic()
        self._until = {job_id: until for job_id, until in self._until.items() if until > now}
        return list(self._until)


class Endings:
    """Records in the ledger, the log and the tally how chunks end; called by many threads."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        models: Models,
        worker_id: str,
        outage_seconds: float,
        job_ttl_seconds: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._models = models
        self._worker_id = worker_id
        self._outage_seconds = outage_seconds
        self._job_ttl_seconds = job_ttl_seconds
        self._monotonic = monotonic
        self._draining = threading.Event()
        self.shunned_jobs = ShunnedJobs(monotonic)
        self.refused_jobs: tuple[str, ...] = ()  # the last ones whose output this worker must not use
        self.tally = ChunkTally()
        self._has_passed_on_a_finish = False
        self.completed = 0  # chunks, since the process began

    def drain(self) -> None:
        """Retry nothing more."""
        self._draining.set()

    def complete(self, held: HeldChunk, result: ChunkResult) -> CompleteAnswer | None:
        """Record that the part is in place; while Redis is away, again and again.

        Returns:
            The ledger's answer; None if the worker drained first: the next owner finds the part.

        Raises:
            OutputUnavailableError: Redis has lost rows before they became visible.
        """
        claim, ran = held.claim, result.ran
        complete = partial(
            self._ledger.complete,
            claim,
            ok=result.counts.ok,
            failed=result.counts.failed,
            codes=result.counts.codes,
            work_seconds=result.work_seconds,
            ran=None if ran is None else (ran.ok + ran.failed, ran.failed),
            meters=result.meters,
            ttl_seconds=self._job_ttl_seconds,
            decisions=result.decisions,
        )
        word = self._insist(complete, "chunk not completed yet: %s", _context("complete_retried", claim))
        if word is None:
            return None
        if word is CompleteAnswer.INCOMPLETE:
            raise OutputUnavailableError(f"Redis has lost rows of chunk {claim.chunk_id}")
        self._count_completed(held, word, result)
        self.shunned_jobs.forget(claim.job_id)
        log.info("chunk %d is %s", claim.chunk_id, word, extra=_context("chunk_completed", claim))
        if word is CompleteAnswer.STOPPED:
            log.warning("job %s: too many rows failed", claim.job_id, extra=_context("job_stopped", claim))
        return word

    def _insist(self, call: Callable[[], T], trouble: str, context: Mapping[str, object]) -> T | None:
        """Call the ledger until Redis answers; None if the worker drains first."""
        while True:
            try:
                return call()
            except RedisUnavailableError as error:
                log.warning(trouble, error, extra=context)
                if self._draining.wait(_RETRY_SECONDS):
                    return None

    def _count_completed(self, held: HeldChunk, word: CompleteAnswer, result: ChunkResult) -> None:
        self.completed += 1  # of several threads one may get lost: it is a figure for people
        if word.is_counted:
            rows = result.counts if result.ran is None else result.ran
            self.tally.done(rows, result.work_seconds, self._lived_seconds(held))
        else:
            self.tally.ended(ChunkEnd.LATE, self._lived_seconds(held))

    def _lived_seconds(self, held: HeldChunk) -> float:
        return self._monotonic() - held.taken_at

    def release(self, held: HeldChunk, error: BaseException) -> None:
        """Release a chunk without a part, as its error demands; while Redis is away, again and again."""
        error = shortage_behind(error) or error
        _log_end(held.claim, error)
        self.tally.ended(_end_of(error), self._lived_seconds(held))
        release = partial(self._release_by, held.claim, error)
        self._insist(release, "chunk not released: %s", _context("release_failed", held.claim))

    def release_all(self, chunks: Iterable[HeldChunk], reason: str) -> bool:
        """Release chunks, once, whose threads may be busy with them; those that complete all the same count.

        Returns:
            False if Redis was away.
        """
        interruption = ChunkInterrupted(reason)
        try:
            for held in chunks:
                self._release_by(held.claim, interruption)
        except RedisUnavailableError as error:
            log.warning("chunks not released: %s", error, extra={"action": "release_failed"})
            return False
        return True

    def _release_by(self, claim: Claim, error: BaseException) -> None:
        if isinstance(error, ChunkInterrupted | BatcherStopped):
            self._release(claim, "drain", error)
        elif isinstance(error, OutputConflictError):
            self.fail_job(claim, ErrorCode.OUTPUT_CONFLICT, error)
        elif isinstance(error, OutputTooNewError):
            self.shunned_jobs.add(claim.job_id)  # newer workers do it: nothing is wrong with job or chunk
            self._release(claim, "drain", error)
        elif isinstance(error, OutputUnreachableError):
            self._release_unreachable(claim, error)
        elif isinstance(error, _OF_THE_WORLD):
            if isinstance(error, _AWAY):
                self.shunned_jobs.wait(claim.job_id)
            self._release(claim, "waits", error)
        elif isinstance(error, ChunkLostError) or claim.failures + 1 >= _LAST_FAILURE:
            # Not even failed rows can be written.
            self.fail_job(claim, ErrorCode.CHUNK_FAILED, error)
        else:
            self._release(claim, "failures", error)

    def _release_unreachable(self, claim: Claim, error: BaseException) -> None:
        """Leave the job to other workers, which may reach its output, or to a mount that returns.

        Fails it once all workers that serve its model refuse its output by their settings, or after so many
        failures of one chunk.
        """
        others = self._others_for(claim.job_id)
        if isinstance(error, OutputRefusedError) and others is not None:
            self._release_refused(claim, error, others)
            return
        if claim.failures + 1 >= MAX_FAILURES:
            self.fail_job(claim, ErrorCode.OUTPUT_UNREACHABLE, error)
            return
        self._release(claim, "failures", error)
        if isinstance(error, OutputDamagedError):
            return  # nothing is wrong with this worker: it does the job's other chunks
        if others == []:
            # After the release, so that this chunk is the first to be due again.
            self.shunned_jobs.wait(claim.job_id, _LONE_WAIT_SECONDS)
        else:
            self.shunned_jobs.add(claim.job_id)

    def _release_refused(self, claim: Claim, error: BaseException, others: list[WorkerFacts]) -> None:
        job_id = claim.job_id
        known = [one for one in self.refused_jobs if one != job_id]
        self.refused_jobs = (*known, job_id)[-_MOST_REFUSED:]
        if all(job_id in facts.refused_jobs for facts in others):
            is_of_model = isinstance(error, ModelMismatchError)
            code = ErrorCode.MODEL_UNAVAILABLE if is_of_model else ErrorCode.OUTPUT_UNREACHABLE
            self.fail_job(claim, code, error)
            return
        self.shunned_jobs.add(job_id, _REFUSED_SECONDS)
        self._release(claim, "drain", error)  # no failure of the chunk: another worker may do it

    def _release(self, claim: Claim, kind: str, error: BaseException) -> None:
        word = self._ledger.release(
            claim, kind, reason=f"{type(error).__name__}: {error}"[:300], outage_seconds=self._outage_seconds
        )
        if word is ReleaseAnswer.PAUSED:
            log.error("job %s paused itself: %s", claim.job_id, error, extra=_context("job_paused", claim))

    def release_without_model(self, held: HeldChunk, model: str, error: BaseException) -> ItemError | None:
        """Release a chunk whose model cannot be loaded here to the workers that serve it.

        Returns:
            None, or, if no other worker serves the model, the error for all rows: the chunk is still held.
        """
        if not self._others(model):
            return ItemError(ErrorCode.MODEL_UNAVAILABLE, " ".join(str(error).split())[:300])
        self._models.shun(model)
        self._release(held.claim, "drain", error)
        self.tally.ended(ChunkEnd.DRAINED, self._lived_seconds(held))
        return None

    def fail_job(self, claim: Claim | FinishClaim, code: ErrorCode, error: BaseException) -> None:
        """Fail a job whose rows cannot be written, unless the claim was lost meanwhile."""
        self._ledger.fail(
            claim.job_id,
            f"{code}: {error}"[:300],
            ttl_seconds=self._job_ttl_seconds,
            holder=claim,
        )

    def pass_on_finish(self, claim: FinishClaim) -> None:
        """Leave the end of a job that fills a store to workers that have the extra `[store]`."""
        if not self._has_passed_on_a_finish:
            self._has_passed_on_a_finish = True
            log.warning(
                "job %s fills a store, which this worker cannot write: pip install 'clipfleet[store]'; other "
                "workers finish such jobs, this one runs their chunks",
                claim.job_id,
                extra={"action": "finish_passed_on", "job_id": claim.job_id},
            )
        self.shunned_jobs.add(claim.job_id)
        self._ledger.postpone_finish(claim, 0)

    def postpone_finish(self, claim: FinishClaim, error: BaseException) -> None:
        """Postpone the end of a job whose output cannot be used here; the ledger limits for how long."""
        if isinstance(error, OutputTooNewError):
            self.shunned_jobs.add(claim.job_id)
            self._ledger.postpone_finish(claim, 0)
            return
        is_lasting = isinstance(error, OutputUnreachableError) and shortage_behind(error) is None
        if is_lasting:
            self.shunned_jobs.add(claim.job_id)
        else:
            self.shunned_jobs.wait(claim.job_id)
        self._postpone_finish(claim, error, str(error), self._outage_seconds, is_lasting=is_lasting)

    def postpone_faulty_finish(self, claim: FinishClaim, error: BaseException) -> None:
        """Leave the end of a job that fails unexpectedly to other workers; soon the job is paused.

        `resume` tries again, after an update perhaps: nothing that was computed is lost.
        """
        self.shunned_jobs.add(claim.job_id)
        seconds = min(self._outage_seconds, _FAULTY_FINISH_SECONDS)
        self._postpone_finish(claim, error, f"{type(error).__name__}: {error}", seconds, is_lasting=False)

    def _postpone_finish(
        self,
        claim: FinishClaim,
        error: BaseException,
        reason: str,
        outage_seconds: float,
        *,
        is_lasting: bool,
    ) -> None:
        word = self._ledger.postpone_finish(
            claim,
            _POSTPONE_SECONDS,
            reason[:300],
            outage_seconds=outage_seconds,
            ttl_seconds=self._job_ttl_seconds,
            is_lasting=is_lasting,
        )
        context = {"action": f"finish_{word}", "job_id": claim.job_id}
        if word in (PostponeAnswer.FAILED, PostponeAnswer.PAUSED):
            log.error("job %s could not be finished: %s", claim.job_id, error, extra=context)
        else:
            log.warning("job %s waits: %s", claim.job_id, error, extra=context)

    def _others(self, model: str) -> list[WorkerFacts]:
        """Other workers with a recent heartbeat that serve the model."""
        workers = self._ledger.workers()
        return [facts for facts in workers if facts.worker_id != self._worker_id and facts.serves(model)]

    def _others_for(self, job_id: str) -> list[WorkerFacts] | None:
        """Other workers that could do the job; None if its model is unknown."""
        try:
            return self._others(self._ledger.status(job_id).model)
        except (JobNotFoundError, JobUnreadableError):
            return None


def _end_of(error: BaseException) -> ChunkEnd:
    if isinstance(error, ChunkInterrupted):
        return _INTERRUPTED.get(str(error), ChunkEnd.DRAINED)
    if isinstance(error, BatcherStopped | OutputTooNewError):
        return ChunkEnd.DRAINED
    is_of_the_world = isinstance(error, _OF_THE_WORLD) and not isinstance(error, OutputUnreachableError)
    return ChunkEnd.WAITED if is_of_the_world else ChunkEnd.FAILED


def _log_end(claim: Claim, error: BaseException) -> None:
    if isinstance(error, ChunkInterrupted | BatcherStopped):
        log.info("chunk %d: %s", claim.chunk_id, error, extra=_context("chunk_interrupted", claim))
    elif isinstance(error, OutputUnreachableError | OutputConflictError):
        log.error("%s", error, extra=_context("output_unusable", claim))
    elif isinstance(error, _OF_THE_WORLD):
        log.warning("chunk %d waits: %s", claim.chunk_id, error, extra=_context("chunk_waits", claim))
    else:
        log.error(
            "chunk %d failed: %r",
            claim.chunk_id,
            error,
            exc_info=error,
            extra=_context("chunk_failed", claim),
        )


def _context(action: str, claim: Claim) -> dict[str, object]:
    return {"action": action, "job_id": claim.job_id, "chunk_id": claim.chunk_id}
