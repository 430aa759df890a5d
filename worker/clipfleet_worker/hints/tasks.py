"""The tasks behind the hints: process one chunk, or finish one job.

The one place that catches everything: an exception that escapes a task (MemoryError, SystemExit) may freeze a
slot of Celery's thread pool for ever. So every task ends normally, and the ledger records how.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from celery import Celery

from clipfleet.contract.jobs import ErrorCode
from clipfleet.errors import OutputConflictError, OutputUnavailableError, RedisUnavailableError
from clipfleet.hints import Hints
from clipfleet.ledger import keys
from clipfleet.ledger.answers import CompleteAnswer
from clipfleet.ledger.jobs import FINISH, Claim, FinishClaim, Lease, Ledger
from clipfleet.tracing import NO_TRACING, Attributes, Tracing
from clipfleet_worker.chunk.claims import Claims
from clipfleet_worker.chunk.endings import Endings
from clipfleet_worker.chunk.held_chunk import HeldChunk
from clipfleet_worker.chunk.held_lease import HeldLease, lease_clock
from clipfleet_worker.chunk.job_contexts import JobContexts
from clipfleet_worker.chunk.leases import LeaseKeeper
from clipfleet_worker.chunk.pipeline import ChunkResult, Pipeline
from clipfleet_worker.failures import ChunkInterrupted, ModelUnavailableError
from clipfleet_worker.finish.committing import NoStoreExtraError, StoreBusyError
from clipfleet_worker.finish.finisher import Finisher

log = logging.getLogger(__name__)

_BUSY_SECONDS = 2.0  # until the lock of a store is tried again


def _no_events() -> None:
    """For `Tasks` without a courier."""


@dataclass(frozen=True, slots=True)
class Tasks:
    """The bodies of the Celery tasks; idle workers call them without a hint."""

    ledger: Ledger
    claims: Claims
    endings: Endings
    contexts: JobContexts
    keeper: LeaseKeeper
    pipeline: Pipeline
    finisher: Finisher
    hints: Hints
    lease_seconds: float
    tracing: Tracing = NO_TRACING
    on_events: Callable[[], None] = _no_events  # a chunk or job has ended, which may have published events

    def work(self) -> bool:
        """Claim one chunk and process it; False if there is none."""
        try:
            held = self.claims.take()
            if held is not None:
                self._work(held)
        except RedisUnavailableError as error:
            log.warning("nothing claimed: %s", error, extra={"action": "claim_failed"})
        except BaseException:
            # The end of a claimed chunk could not be recorded: its lease expires.
            log.exception("chunk not processed", extra={"action": "work_failed"})
        else:
            return held is not None
        return False

    def _work(self, held: HeldChunk) -> None:
        claim = held.claim
        try:
            lease_of = Lease(claim.job_id, str(claim.chunk_id), claim.token)
            with (
                chunk_spans(self.tracing, claim) as on_step,
                self.keeper.hold(lease_of, on_step, asked_at=claim.asked_at) as lease,
            ):
                if claim.more:
                    self.hints.publish_work()
                self._process(held, lease)
        except BaseException as error:
            self.endings.release(held, error)
        finally:
            self.claims.done_with(held)

    def _process(self, held: HeldChunk, lease: HeldLease) -> None:
        claim = held.claim
        context = self.contexts.get(claim)
        try:
            result: ChunkResult = self.pipeline.run(claim, context, lease)
        except ModelUnavailableError as unavailable:
            error = self.endings.release_without_model(held, context.job.model, unavailable)
            if error is None:
                return
            result = self.pipeline.give_up(claim, context, lease, error)
        lease.enter_complete()
        answer = self.endings.complete(held, result)
        self.on_events()
        if answer is CompleteAnswer.FINISHING:
            self.hints.publish_finish()

    def finish_job(self) -> bool:
        """Finish one job whose chunks are all complete; False if there is none, or a retry is useless now."""
        claim: FinishClaim | None = None
        try:
            asked_at = lease_clock()
            claim = self.ledger.claim_finish(
                uuid.uuid4().hex, self.lease_seconds, self.endings.shunned_jobs.current()
            )
            return claim is not None and self._finish(claim, asked_at)
        except RedisUnavailableError as error:
            log.warning("no job finished: %s", error, extra={"action": "finish_failed"})
        except BaseException:
            # Nothing is claimed, or the lease expires and a worker retries.
            job_id = claim.job_id if claim else "?"
            log.exception("job %s not finished", job_id, extra=_context("finish_failed", job_id))
        return False

    def _finish(self, claim: FinishClaim, asked_at: float) -> bool:
        """Finish a claimed job; False if this worker should claim no other job."""
        try:
            lease_of = Lease(claim.job_id, FINISH, claim.token)
            with self.keeper.hold(lease_of, asked_at=asked_at) as lease:
                word = self.finisher.finish(claim, self.contexts.get(claim), lease)
        except ChunkInterrupted as error:
            log.info("job %s: %s", claim.job_id, error, extra=_context("finish_interrupted", claim.job_id))
            self.ledger.postpone_finish(claim, 0)
            return False
        except NoStoreExtraError:
            self.endings.pass_on_finish(claim)
        except StoreBusyError as error:
            log.info("job %s waits: %s", claim.job_id, error, extra=_context("store_busy", claim.job_id))
            self.ledger.postpone_finish(claim, _BUSY_SECONDS)
        except OutputConflictError as error:
            log.error("%s", error, extra=_context("finish_conflict", claim.job_id))
            self.endings.fail_job(claim, ErrorCode.OUTPUT_CONFLICT, error)
        except OutputUnavailableError as error:
            self.endings.postpone_finish(claim, error)
        except RedisUnavailableError:
            raise
        except BaseException as error:
            log.exception("job %s not finished", claim.job_id, extra=_context("finish_failed", claim.job_id))
            self.endings.postpone_faulty_finish(claim, error)
            return False
        else:
            self.on_events()
            log.info("job %s is %s", claim.job_id, word, extra=_context("job_ended", claim.job_id))
        return True


def _context(action: str, job_id: str) -> dict[str, str]:
    return {"action": action, "job_id": job_id}


def register(app: Celery, tasks: Tasks) -> None:
    """Register both tasks with the app; arguments of a hint are ignored."""

    # Not shared: Celery would add them to every app of the process.
    @app.task(name=keys.WORK_TASK, shared=False)  # type: ignore[untyped-decorator]  # Celery has no types
    def work(*_args: object, **_kwargs: object) -> None:
        tasks.work()

    @app.task(name=keys.FINISH_TASK, shared=False)  # type: ignore[untyped-decorator]  # Celery has no types
    def finish_job(*_args: object, **_kwargs: object) -> None:
        tasks.finish_job()


@contextmanager
def chunk_spans(tracing: Tracing, claim: Claim) -> Iterator[Callable[[str], None]]:
    """A span around the work on a chunk. Yields a function that ends the span of a step and begins the next.

    Consecutive calls with the same step make one span.
    """
    about: Attributes = {
        "job_id": claim.job_id,
        "chunk_id": claim.chunk_id,
        "generation": claim.generation,
    }
    chunk = tracing.span("chunk", parent=claim.traceparent, attributes=about)
    present = ""
    with chunk as traceparent, ExitStack() as step:

        def enter(name: str) -> None:
            nonlocal present
            if name != present:
                step.close()
                present = name
                step.enter_context(tracing.span(name, parent=traceparent))

        yield enter
