"""The steps of a job: submit it, follow it, keep how it ended. Each is repeatable, by any gateway.

A lock only avoids that two gateways do the same work: the ledger and the record's versions keep it right.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from clipfleet.contract.jobs import JobState
from clipfleet.errors import (
    JobConflictError,
    JobNotFoundError,
    OutputDamagedError,
    QuotaExceededError,
    UsageError,
)
from clipfleet.ledger.jobs import JobStatus, Ledger
from clipfleet.ledger.locks import Alive, LockLostError, LockTakenError
from clipfleet.settings import DAY_SECONDS
from clipfleet_gateway.errors import ApiError, why_not_submitted
from clipfleet_gateway.jobs.record import Counts, JobRecord, job_error, made_at, new_job_id
from clipfleet_gateway.jobs.store import JobStore
from clipfleet_gateway.jobs.submitting import Submitting, require_allowed
from clipfleet_gateway.keys.key import Key
from clipfleet_gateway.keys.ring import KeyRing, now_in_utc
from clipfleet_gateway.known_models import KnownModels
from clipfleet_gateway.shapes.jobs import JobBody, JobRequest

_LOG = logging.getLogger(__name__)
_TRIES = 20  # of a cancel that steps overtake


class Spend(Protocol):
    """See `Quotas.spend`."""

    def __call__(self, key: Key, count: int, *, once: str | None = None) -> None:
        """Count images and texts; raises `ApiError` if they exceed the quota."""


@dataclass(frozen=True)
class Jobs:
    """Takes jobs as far as they can go now. Thread-safe. Raises `WorldError` while a service is away."""

    store: JobStore
    submitting: Submitting
    ledger: Ledger
    models: KnownModels
    keys: KeyRing
    spend: Spend
    hold: Callable[[str], AbstractContextManager[Alive]]  # a lock by name; raises `LockTakenError`
    now: Callable[[], datetime] = now_in_utc

    def begin(self, request: JobRequest, digest: str, key: Key, idempotency_key: str | None) -> JobRecord:
        """Keep a new job, or return the one that this idempotency key has made.

        Raises:
            ApiError: it is refused, see `require_allowed`; or its items exceed the quota of the key.
        """
        now = self.now()
        job_id = new_job_id(now)
        if idempotency_key is not None:
            job_id = self.store.id_for(key.name, job_id, idempotency_key)
            found = self.store.find(key.name, job_id)
            if found is not None:
                return found
        require_allowed(request, key, self.submitting.files)
        policy = self.submitting.policy_named(request.policy)
        if request.items is not None:
            self.spend(key, len(request.items), once=job_id)
        asked = JobBody(**{name: getattr(request, name) for name in JobBody.model_fields})
        job = JobRecord(
            id=job_id, owner=key.name, created_at=int(now.timestamp()), asked=asked, source=request.source,
            digest=digest, policy=policy,
        )  # fmt: skip
        return self.store.keep(job, request.items)

    def open(self) -> list[tuple[str, str]]:
        """Owners and ids of the jobs that have not ended."""
        return [*self.store.open()]

    def advance(self, owner: str, job_id: str, alive: Alive = lambda: None) -> bool:
        """Do all steps that can be done now; none if another gateway is at it.

        Args:
            owner: of the job.
            job_id: a job that may not be there, or may have ended.
            alive: called now and then; raises to stop.

        Returns:
            Whether a step was done, or another gateway is at it.

        Raises:
            LockLostError: another gateway may be at it now.
        """
        try:
            with self.hold(f"gateway-{job_id}") as still_held:

                def both() -> None:
                    alive()
                    still_held()

                first = job = self.store.find(owner, job_id)
                while job is not None and job.end is None:
                    after = self._step(job, both)
                    if after is job:
                        return job is not first
                    job = after or self.store.find(owner, job_id)
                self._clear(owner, job_id, job)
                return job is not None
        except LockTakenError:
            return True
        except LockLostError:
            self._clear(owner, job_id, self.store.find(owner, job_id))
            raise

    def _clear(self, owner: str, job_id: str, job: JobRecord | None) -> None:
        """Clean up after a job that has ended, or that was never completely made."""
        if job is not None and job.end is not None:
            self._cancelled(job_id)  # a gateway that was frozen may have submitted it after the end
            self.store.end(owner, job_id)
        elif job is None and made_at(job_id) < self._seconds() - DAY_SECONDS:
            self.store.end(owner, job_id)

    def cancel(self, job: JobRecord) -> JobRecord:
        """Let a job end early. Idempotent; one that has ended is returned as it is."""
        for _ in range(_TRIES):
            if job.end is not None or job.is_cancelled:
                break
            changed = self.store.change(job, is_cancelled=True)
            job = changed or self.store.find(job.owner, job.id) or job
        if job.end is None:
            self._cancelled(job.id)
        return job

    def counts(self, job: JobRecord) -> Counts | None:
        """What the ledger knows of a job now; None if it does not know it."""
        status = self._status(job.id)
        return None if status is None else Counts.of(status)

    def _seconds(self) -> int:
        return int(self.now().timestamp())

    def _step(self, job: JobRecord, alive: Alive) -> JobRecord | None:
        """One step: the job after it; the same object if it must wait; None if it was overtaken."""
        if job.is_cancelled:
            status = self._cancelled(job.id)
            if status is not None and not status.state.is_final:
                return job  # it is finishing
            return self._ended(job, Counts(state=JobState.CANCELLED) if status is None else Counts.of(status))
        return self._follow(job) if job.is_submitted else self._submit(job, alive)

    def _submit(self, job: JobRecord, alive: Alive) -> JobRecord | None:
        status = self._restored(job)
        if status is not None and (status.sealed or status.state.is_final):
            return self.store.change(job, is_submitted=True)  # its source may have changed, or be gone
        key = self.keys.find(job.owner)
        if key is None:
            raise OutputDamagedError(f"{self.store.place.uri}/keys/{job.owner}.json is gone: restore it")

        def count(items: int) -> None:
            alive()
            self.spend(key, items, once=job.id)

        try:
            items = self.store.items(job.id)
            self.submitting.run(job, key, items, self.store.output(job.id), count, alive)
        except (QuotaExceededError, JobConflictError) as error:
            # The quota of all jobs has room later. Or it is cancelled, or a gateway that was frozen goes on.
            _LOG.warning("job %s waits: %s", job.id, error)
            status = self._status(job.id)
            return self._follow(job) if status is not None and status.state.is_final else job
        except (ApiError, UsageError) as error:
            return self._failed(job, error)
        return self.store.change(job, is_submitted=True)

    def _failed(self, job: JobRecord, error: ApiError | UsageError) -> JobRecord | None:
        """End a job that cannot be run."""
        _LOG.warning("job %s is not run: %s", job.id, error)
        status = self._cancelled(job.id)
        failed = Counts(state=JobState.FAILED) if status is None else Counts.of(status)
        counts = failed.model_copy(update={"state": JobState.FAILED, "reason": why_not_submitted(error)})
        return self._ended(job, counts, error=job_error(error))

    def _follow(self, job: JobRecord) -> JobRecord | None:
        status = self._restored(job)
        if status is None or not (status.sealed or status.state.is_final):
            return self.store.change(job, is_submitted=False)
        if status.state.is_final:
            return self._ended(job, Counts.of(status))
        try:
            if not status.done:
                self.models.require(status.model, self._seconds() - job.created_at)
        except ApiError as error:
            return self._failed(job, error)
        return job

    def _ended(self, job: JobRecord, counts: Counts, **more: object) -> JobRecord | None:
        finished_at = counts.finished_at or self._seconds()
        end = counts.model_copy(update={"finished_at": finished_at})
        return self.store.change(job, end=end, **more)

    def _status(self, job_id: str) -> JobStatus | None:
        with suppress(JobNotFoundError):
            return self.ledger.status(job_id)
        return None

    def _restored(self, job: JobRecord) -> JobStatus | None:
        """The status of a job, once Redis has back what it has lost of it; None if nothing of it is known."""
        status = self._status(job.id)
        if status is None or not (status.sealed or status.state.is_final):
            # Redis has lost it, or is as it was during the submit.
            with suppress(JobNotFoundError):
                status = self.submitting.client.rebuild(self.store.output(job.id)).status()
        return status

    def _cancelled(self, job_id: str) -> JobStatus | None:
        """End the job in the ledger; its status, or None if the ledger does not know it."""
        with suppress(JobNotFoundError):
            handle = self.submitting.client.job(job_id)
            handle.cancel()
            return handle.status()
        return None
