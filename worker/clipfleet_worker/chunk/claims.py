"""Taking chunks from the ledger when there is room, and telling it how they ended."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from clipfleet.contract.jobs import ErrorCode, ItemError, Lane
from clipfleet.errors import (
    OutputConflictError,
    OutputTooNewError,
    OutputUnavailableError,
    OutputUnreachableError,
    RedisUnavailableError,
    SourceUnavailableError,
)
from clipfleet.ledger.answers import CompleteAnswer, PostponeAnswer, ReleaseAnswer, RenewAnswer
from clipfleet.ledger.jobs import MAX_FAILURES, Claim, FinishClaim, Ledger
from clipfleet_worker.chunk.leases import lease_clock
from clipfleet_worker.chunk.open_items import OpenItems
from clipfleet_worker.chunk.pipeline import ChunkResult
from clipfleet_worker.chunk.tally import ChunkEnd, ChunkTally
from clipfleet_worker.encode.batcher import BatcherStopped
from clipfleet_worker.failures import ChunkInterrupted, WorkerShortageError
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
# While the room that is left is kept for the lane `high`. A hint that comes then is followed at once, but
# there may be no slot for it to come to.
_LOOK_FOR_HIGH_SECONDS = 0.5
_LAST_FAILURE = 2 * MAX_FAILURES  # after the first five a chunk is given up; that may fail as often again
_SHUN_JOB_SECONDS = 60.0  # how long a job whose output is out of reach here is left to other workers
_WAIT_SECONDS = (1.0, 15.0)  # the same for an output that is away for now: at first, and at most


class ShunnedJobs:
    """Jobs that this worker leaves to others for a while."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._until: dict[str, float] = {}
        self._waits: dict[str, float] = {}  # how long each job was left alone last, for the world's sake

    def add(self, job_id: str) -> None:
        """Leave this job alone for a minute."""
        self._until[job_id] = self._monotonic() + _SHUN_JOB_SECONDS

    def wait(self, job_id: str) -> None:
        """Leave this job alone for a while, longer each time: else all its chunks would be tried in vain."""
        if job_id not in self.current():
            first, most = _WAIT_SECONDS
            self._waits[job_id] = min(most, 2 * self._waits.get(job_id, first / 2))
            self._until[job_id] = self._monotonic() + self._waits[job_id]

    def forget(self, job_id: str) -> None:
        """A chunk of this job has come through."""
        self._waits.pop(job_id, None)

    def current(self) -> list[str]:
        """Jobs to leave alone now."""
        now = self._monotonic()
        self._until = {job_id: until for job_id, until in self._until.items() if until > now}
        return list(self._until)


@dataclass(frozen=True, slots=True)
class HeldChunk:
    """A chunk between `take` and `done_with`."""

    claim: Claim
    since: float  # monotonic seconds
    from_reserve: bool  # `OpenItems` counts it so


class Claims:
    """One claim at a time per process, so that the bounds are checked against what is really open."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        open_items: OpenItems,
        models: Models,
        worker_id: str,
        lease_seconds: float,
        outage_seconds: float,
        job_ttl_seconds: int,
        slots: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._open_items = open_items
        self._models = models
        self._worker_id = worker_id
        self._lease_seconds = lease_seconds
        self._outage_seconds = outage_seconds
        self._job_ttl_seconds = job_ttl_seconds
        self.shunned_jobs = ShunnedJobs()
        self.tally = ChunkTally()
        self._lock = threading.Lock()
        self._unanswered: str | None = None  # token of a claim that may have been granted
        self._leaving = threading.Event()
        self._slots = slots
        self._monotonic = monotonic
        self._slots_in_use = 0
        self.completed = 0  # chunks, since the process began
        self._held: dict[str, HeldChunk] = {}  # by token
        self._takers = 0  # slots whose hint waits for room or for the answer to its claim
        self._hints = 0  # that have come so far
        self._last_full = monotonic()  # when a slot became free after all were in use
        self._slots_lock = threading.Lock()

    def leave(self) -> None:
        """Take nothing more."""
        self._leaving.set()
        self._open_items.close()

    def take(self) -> Claim | None:
        """A claimed chunk, or None if nothing is due; waits while the worker is full.

        `done_with` must follow for every claim.
        """
        with self._slots_lock:
            self._slots_in_use += 1
            self._takers += 1
            self._hints += 1
        self._open_items.wake()
        claim = None
        try:
            with self._lock:
                claim = self._take()
        finally:
            with self._slots_lock:
                self._takers -= 1
            if claim is None:
                self._leave_slot()
        return claim

    def _take(self) -> Claim | None:
        while lanes := self._open_items.wait_for_room():
            hints = self._hints
            claim = self._claim(lanes)
            if claim is not None:
                from_reserve = len(lanes) < len(Lane)
                self._open_items.add(claim.chunk_size, from_reserve=from_reserve)
                with self._slots_lock:
                    self._held[claim.token] = HeldChunk(claim, self._monotonic(), from_reserve)
                return claim
            if len(lanes) == len(Lane):
                return None
            # There may be work in the other lanes: were the hint to die here, its chain would be broken.
            self._open_items.wait_for_room_in_all_lanes(
                _LOOK_FOR_HIGH_SECONDS, unless=partial(self._has_hint_since, hints)
            )
        return None

    def _has_hint_since(self, hints: int) -> bool:
        return self._hints != hints

    def _claim(self, lanes: Sequence[Lane]) -> Claim | None:
        """Ask the ledger. After a question that was not answered the same one is asked: else a chunk that was
        granted then would be nobody's, and count as lost.
        """
        token, self._unanswered = self._unanswered or uuid.uuid4().hex, None
        asked_at = lease_clock()
        try:
            claim = self._ledger.claim(
                token, self._lease_seconds, lanes, self._models.served(), self.shunned_jobs.current()
            )
        except RedisUnavailableError:
            self._unanswered = token
            raise
        return claim and replace(claim, asked_at=asked_at)

    def done_with(self, claim: Claim) -> None:
        """Make room for the next claim."""
        with self._slots_lock:
            held = self._held.pop(claim.token)
        self._open_items.remove(claim.chunk_size, from_reserve=held.from_reserve)
        self._leave_slot()

    def held(self) -> list[Claim]:
        """Chunks between `take` and `done_with`."""
        with self._slots_lock:
            return [held.claim for held in self._held.values()]

    @property
    def oldest_held_seconds(self) -> float:
        """How long the chunk that was claimed first has been held; 0 if there is none."""
        with self._slots_lock:
            now = self._monotonic()
            return max((now - held.since for held in self._held.values()), default=0.0)

    def _lived_seconds(self, claim: Claim) -> float:
        with self._slots_lock:
            held = self._held.get(claim.token)
        return 0.0 if held is None else self._monotonic() - held.since

    def give_back_all(self, reason: str) -> bool:
        """Give back what is held, for a worker that leaves, while its threads may still be busy with it.

        Whoever finishes a chunk all the same may still say so. Returns False if the ledger could not be told.
        """
        interruption = ChunkInterrupted(reason)
        try:
            for claim in self.held():
                self._give_back(claim, interruption)
        except RedisUnavailableError as error:
            log.warning("chunks not given back: %s", error, extra={"action": "release_failed"})
            return False
        return True

    def _leave_slot(self) -> None:
        with self._slots_lock:
            if self._slots_in_use >= self._slots:
                self._last_full = self._monotonic()
            self._slots_in_use -= 1

    def has_idle_slot(self, seconds: float) -> bool:
        """Whether a slot has been free for so long, and room too: so there are no hints it could have had."""
        with self._slots_lock:
            if self._takers or self._slots_in_use >= self._slots:
                return False
            was_free = self._monotonic() - self._last_full >= seconds
        return was_free and self._open_items.has_room_in_all_lanes

    def complete(self, claim: Claim, result: ChunkResult) -> CompleteAnswer | None:
        """Mark a chunk complete in the ledger; retried while Redis is unavailable.

        Returns:
            The ledger's answer; None if the worker had to stop first: the next owner finds the part.

        Raises:
            OutputUnavailableError: the rows are not all there any more, where they should become visible.
        """
        ran = result.ran
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
        )
        word = self._insist(complete, "chunk not completed yet: %s", _context("complete_retried", claim))
        if word is None:
            return None
        if word is CompleteAnswer.INCOMPLETE:
            raise OutputUnavailableError(f"rows of chunk {claim.chunk_id} were lost by Redis")
        self._count_completed(claim, word, result)
        self.shunned_jobs.forget(claim.job_id)
        log.info("chunk %d is %s", claim.chunk_id, word, extra=_context("chunk_completed", claim))
        if word is CompleteAnswer.STOPPED:
            log.warning("job %s: too many rows failed", claim.job_id, extra=_context("job_stopped", claim))
        return word

    def _insist(self, tell: Callable[[], T], trouble: str, context: Mapping[str, object]) -> T | None:
        """What the ledger answers, told again while Redis is away; None if the worker has to go first."""
        while True:
            try:
                return tell()
            except RedisUnavailableError as error:
                log.warning(trouble, error, extra=context)
                if self._leaving.wait(_RETRY_SECONDS):
                    return None

    def _count_completed(self, claim: Claim, word: CompleteAnswer, result: ChunkResult) -> None:
        self.completed += 1  # of several threads one may get lost: it is a figure for people
        if word.is_counted:
            rows = result.counts if result.ran is None else result.ran
            self.tally.done(rows, result.work_seconds, self._lived_seconds(claim))
        else:
            self.tally.ended(ChunkEnd.LATE, self._lived_seconds(claim))

    def give_back(self, claim: Claim, error: BaseException) -> None:
        """Tell the ledger how a chunk ended without a part; while Redis is away, again and again.

        If the worker has to go first, the lease expires by itself and the chunk is claimed again.
        """
        error = shortage_behind(error) or error
        _log_end(claim, error)
        self.tally.ended(_end_of(error), self._lived_seconds(claim))
        give_back = partial(self._give_back, claim, error)
        self._insist(give_back, "chunk not released: %s", _context("release_failed", claim))

    def _give_back(self, claim: Claim, error: BaseException) -> None:
        if isinstance(error, ChunkInterrupted | BatcherStopped):
            self._release(claim, "drain", error)
        elif isinstance(error, OutputConflictError):
            self.fail_job(claim, ErrorCode.OUTPUT_CONFLICT, error)
        elif isinstance(error, OutputTooNewError):
            self.shunned_jobs.add(claim.job_id)  # newer workers do it: nothing is wrong with job or chunk
            self._release(claim, "drain", error)
        elif isinstance(error, OutputUnreachableError):
            self._out_of_reach(claim, error)
        elif isinstance(error, _OF_THE_WORLD):
            if isinstance(error, _AWAY):
                self.shunned_jobs.wait(claim.job_id)
            self._release(claim, "waits", error)
        else:
            self._count_failure(claim, error)

    def _release(self, claim: Claim, kind: str, error: BaseException) -> None:
        word = self._ledger.release(
            claim, kind, reason=f"{type(error).__name__}: {error}"[:300], outage_seconds=self._outage_seconds
        )
        if word is ReleaseAnswer.PAUSED:
            log.error("job %s paused itself: %s", claim.job_id, error, extra=_context("job_paused", claim))

    def _count_failure(self, claim: Claim, error: BaseException) -> None:
        """Try again, or end a job for which not even the failed rows of this chunk can be written."""
        if claim.failures + 1 >= _LAST_FAILURE:
            self.fail_job(claim, ErrorCode.CHUNK_FAILED, error)
        else:
            self._release(claim, "failures", error)

    def _out_of_reach(self, claim: Claim, error: BaseException) -> None:
        """Others may reach the output; if nobody else is there, or all have tried, the job cannot go on."""
        if self.is_alone() or claim.failures + 1 >= MAX_FAILURES:
            self.fail_job(claim, ErrorCode.OUTPUT_UNREACHABLE, error)
        else:
            self.shunned_jobs.add(claim.job_id)
            self._release(claim, "failures", error)

    def fail_job(self, claim: Claim | FinishClaim, code: ErrorCode, error: BaseException) -> None:
        """End a job whose rows cannot be written; not if the claim was lost meanwhile."""
        self._ledger.fail(
            claim.job_id,
            f"{code}: {error}"[:300],
            ttl_seconds=self._job_ttl_seconds,
            holder=claim,
        )

    def postpone_finish(self, claim: FinishClaim, error: BaseException) -> None:
        """Leave a job whose output cannot be used here to others, or to better times; not for ever."""
        if isinstance(error, OutputTooNewError):
            self.shunned_jobs.add(claim.job_id)
            self._ledger.postpone_finish(claim, 0)
            return
        is_lasting = isinstance(error, OutputUnreachableError) and shortage_behind(error) is None
        if is_lasting:
            self.shunned_jobs.add(claim.job_id)
        else:
            self.shunned_jobs.wait(claim.job_id)
        word = self._ledger.postpone_finish(
            claim,
            _POSTPONE_SECONDS,
            str(error)[:300],
            outage_seconds=self._outage_seconds,
            ttl_seconds=self._job_ttl_seconds,
            is_lasting=is_lasting,
        )
        context = {"action": f"finish_{word}", "job_id": claim.job_id}
        if word in (PostponeAnswer.FAILED, PostponeAnswer.PAUSED):
            log.error("job %s could not be finished: %s", claim.job_id, error, extra=context)
        else:
            log.warning("job %s waits: %s", claim.job_id, error, extra=context)

    def is_alone(self, model: str | None = None) -> bool:
        """Whether no other worker was heard of lately (that serves a model, if one is named)."""
        others = [facts for facts in self._ledger.workers() if facts.worker_id != self._worker_id]
        return not any(model is None or facts.serves(model) for facts in others)

    def without_model(self, claim: Claim, model: str, error: BaseException) -> ItemError | None:
        """What to do with a chunk whose model cannot be loaded here.

        Returns:
            The error for all its rows if no other worker serves the model, None if it was left to them.
        """
        if self.is_alone(model):
            return ItemError(ErrorCode.MODEL_UNAVAILABLE, " ".join(str(error).split())[:300])
        self._models.shun(model)
        self._release(claim, "drain", error)
        self.tally.ended(ChunkEnd.DRAINED, self._lived_seconds(claim))
        return None


def _end_of(error: BaseException) -> ChunkEnd:
    """How a chunk has ended that has no part of ours."""
    if isinstance(error, ChunkInterrupted):
        return _INTERRUPTED.get(str(error), ChunkEnd.DRAINED)
    if isinstance(error, BatcherStopped | OutputTooNewError):
        return ChunkEnd.DRAINED
    is_of_the_world = isinstance(error, _OF_THE_WORLD) and not isinstance(error, OutputUnreachableError)
    return ChunkEnd.WAITED if is_of_the_world else ChunkEnd.FAILED


def _log_end(claim: Claim, error: BaseException) -> None:
    """Say how a chunk ended without a part."""
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
