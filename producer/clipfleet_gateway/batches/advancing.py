"""The steps of a batch. Each one reads the record, does its work, and changes the record if it is as it was.

A step that is repeated does no harm, and one that another gateway has overtaken changes nothing, so a batch
survives a kill between any two of them. A lock only avoids that two gateways do the same work.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from clipfleet.contract.jobs import JobState
from clipfleet.contract.webhooks import EventType
from clipfleet.errors import JobConflictError, OutputDamagedError, QuotaExceededError, UsageError
from clipfleet.ledger.jobs import JobStatus
from clipfleet.ledger.locks import Alive, LockLostError, LockTakenError
from clipfleet.settings import DAY_SECONDS
from clipfleet_gateway.batches.answers import Lines, write_answers
from clipfleet_gateway.batches.jobs import BatchJobs
from clipfleet_gateway.batches.lines import LineError
from clipfleet_gateway.batches.record import BatchRecord, Checked, Ending, made_at
from clipfleet_gateway.batches.store import BatchStore
from clipfleet_gateway.batches.validation import LABEL_SETS, NoModelYetError, Validation
from clipfleet_gateway.errors import NOT_RUN, ApiError, why_not_submitted
from clipfleet_gateway.files.record import FileRecord, Purpose
from clipfleet_gateway.files.store import FileStore
from clipfleet_gateway.keys.key import Key
from clipfleet_gateway.keys.ring import KeyRing, now_in_utc
from clipfleet_gateway.known_models import KnownModels
from clipfleet_gateway.policies.shelf import PolicyShelf
from clipfleet_gateway.shapes.batches import BatchError, BatchStatus

_LOG = logging.getLogger(__name__)
_ENDINGS = {
    JobState.COMPLETED: Ending.COMPLETED,
    JobState.COMPLETED_WITH_ERRORS: Ending.COMPLETED,
    JobState.CANCELLED: Ending.CANCELLED,
    JobState.FAILED: Ending.FAILED,
}
_TRIES = 20  # of a cancel that steps overtake


class Spend(Protocol):
    """See `Quotas.spend`."""

    def __call__(self, key: Key, count: int, *, once: str | None = None) -> None:
        """Count images and texts; raises `ApiError` if they exceed the quota."""


class Publish(Protocol):
    """See `Outbox.publish`."""

    def __call__(self, event_id: str, event_type: EventType, data: str, /) -> bool:
        """Add an event for all endpoints that want it, unless it was added."""


@dataclass(frozen=True)
class Advancing:
    """Takes batches as far as they can go now. Thread-safe."""

    store: BatchStore
    files: FileStore
    keys: KeyRing
    jobs: BatchJobs
    models: KnownModels
    policies: PolicyShelf
    spend: Spend
    publish: Publish
    hold: Callable[[str], AbstractContextManager[Alive]]  # a lock by name; raises `LockTakenError`
    most_requests: int
    now: Callable[[], datetime] = now_in_utc

    def open(self) -> list[tuple[str, str]]:
        """Owners and ids of the batches that have not ended."""
        return [*self.store.open()]

    def advance(self, owner: str, batch_id: str, alive: Alive = lambda: None) -> bool:
        """Do all steps that can be done now; none if another gateway is at it.

        Args:
            owner: of the batch.
            batch_id: a batch that may not be there, or may have ended.
            alive: called now and then; raises to stop.

        Returns:
            Whether a step was done, or another gateway is at it.

        Raises:
            WorldError: Redis or the place is unavailable; the steps so far are done.
            QuotaExceededError, JobConflictError: its job cannot be submitted now.
            LockLostError: another gateway may be at it now.
        """
        try:
            with self.hold(f"gateway-{batch_id}") as still_held:

                def both() -> None:
                    alive()
                    still_held()

                first = batch = self.store.find(owner, batch_id)
                while batch is not None and not batch.status.is_final:
                    after = self._step(batch, both)
                    if after is batch:
                        return batch is not first
                    batch = after or self.store.find(owner, batch_id)
                self._clear(owner, batch_id, batch)
                return batch is not None
        except LockTakenError:
            return True
        except LockLostError:
            self._clear(owner, batch_id, self.store.find(owner, batch_id))
            raise

    def _clear(self, owner: str, batch_id: str, batch: BatchRecord | None) -> None:
        """Clean up after a batch that has ended, or that was never completely made."""
        if batch is not None and batch.status.is_final:
            self.jobs.cancel(batch_id)  # a gateway that was frozen may have submitted it after the end
            self._announce(batch)
            self.store.end(owner, batch_id)
        elif batch is None and made_at(batch_id) < self._seconds() - DAY_SECONDS:
            self.store.end(owner, batch_id)

    def _announce(self, batch: BatchRecord) -> None:
        """Publish the end of a batch to webhooks; once, however often it is repeated."""
        self.publish(
            f"evt-{batch.id}-{batch.status}", EventType(f"batch.{batch.status}"), json.dumps({"id": batch.id})
        )

    def coming_files(self) -> set[str]:
        """Ids of files that are written, and are found once their batches end."""
        batches = [self.store.find(owner, batch_id) for owner, batch_id in self.open()]
        files = [file for batch in batches if batch for file in (batch.output_file, batch.error_file)]
        return {file.id for file in files if file is not None}

    def cancel(self, batch: BatchRecord) -> BatchRecord:
        """Let a batch end early; one that cancels, was cancelled or writes its files is returned as it is."""
        for _ in range(_TRIES):
            if batch.status not in (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS):
                return batch
            changed = self.store.change(batch, status=BatchStatus.CANCELLING, cancelling_at=self._seconds())
            if changed is not None:
                return changed
            batch = self.store.find(batch.owner, batch.id) or batch
        return batch

    def progress(self, batch: BatchRecord) -> tuple[int, int] | None:
        """Lines of a running batch that are done, and that have failed; None if it is not known."""
        if batch.checked is None or not batch.is_submitted or batch.has_files:
            return None
        status = self.jobs.status(batch.id)
        if status is None:
            return None
        lines, items = batch.checked.requests, batch.checked.inputs
        return status.ok * lines // items, status.failed * lines // items

    def _seconds(self) -> int:
        return int(self.now().timestamp())

    def _step(self, batch: BatchRecord, alive: Alive) -> BatchRecord | None:
        """One step: the batch after it; the same object if it must wait; None if it was overtaken."""
        if batch.ending is not None:
            return self._write(batch, batch.ending, alive) if not batch.has_files else self._finish(batch)
        if batch.status is BatchStatus.CANCELLING:
            return self._stop(batch, Ending.CANCELLED)
        if self._seconds() >= batch.expires_at:
            return self._stop(batch, Ending.EXPIRED)
        if batch.checked is None:
            return self._validate(batch, alive)
        if not batch.is_submitted:
            return self._submit(batch, batch.checked, alive)
        return self._follow(batch)

    # --- Before the job ---

    def _validate(self, batch: BatchRecord, alive: Alive) -> BatchRecord | None:
        key = self._key(batch)
        validation = Validation(
            batch, key, self.files, self.most_requests, self.models.served(), self.policies
        )
        try:
            checked = validation.run(self.store, alive)
        except NoModelYetError:
            return batch
        if not isinstance(checked, Checked):
            return self._failed(batch, checked)
        try:
            self.spend(key, checked.inputs, once=batch.id)
        except ApiError as error:
            return self._failed(
                batch, (BatchError(code=error.code or "quota_exceeded", message=error.message),)
            )
        return self.store.change(
            batch, checked=checked, status=BatchStatus.IN_PROGRESS, in_progress_at=self._seconds()
        )

    def _failed(self, batch: BatchRecord, errors: tuple[BatchError, ...]) -> BatchRecord | None:
        """End a batch of which nothing was run."""
        return self.store.change(batch, status=BatchStatus.FAILED, errors=errors, failed_at=self._seconds())

    def _key(self, batch: BatchRecord) -> Key:
        key = self.keys.find(batch.owner)
        if key is None:
            raise OutputDamagedError(f"{self.store.place.uri}/keys/{batch.owner}.json is gone: restore it")
        return key

    def _submit(self, batch: BatchRecord, checked: Checked, alive: Alive) -> BatchRecord | None:
        kept = self.store.place.read(self.store.label_sets_file(batch.id))
        label_sets = LABEL_SETS.validate_json(kept or b"[]")
        try:
            self.jobs.submit(
                batch, checked, self._key(batch), label_sets, self.store.job_output(batch.id), alive
            )
        except QuotaExceededError:  # of all jobs: there is room for it later
            raise
        except JobConflictError:
            if self._has_ended(batch):  # a person has cancelled the job
                return self._follow(batch)
            raise  # a gateway that was frozen submits it, too
        except (UsageError, ApiError, LineError) as error:
            _LOG.warning("batch %s is not submitted: %s", batch.id, error)
            self.jobs.cancel(batch.id)
            wrong = BatchError(code="not_submitted", message=why_not_submitted(error))
            return self._ending(batch, Ending.FAILED, wrong)
        return self.store.change(batch, is_submitted=True)

    # --- While and after it runs ---

    def _follow(self, batch: BatchRecord) -> BatchRecord | None:
        status = self.jobs.status(batch.id)
        if status is None or not (status.sealed or status.state.is_final):
            # Redis has lost it, or is as it was a moment ago: the submit restores it from its output.
            return self.store.change(batch, is_submitted=False) if batch.is_submitted else batch
        if not status.state.is_final:
            return self._wait(batch, status)
        ending = _ENDINGS[status.state]
        if ending is not Ending.FAILED:
            return self._ending(batch, ending)
        _LOG.warning("the job of batch %s failed: %s", batch.id, status.reason)
        return self._ending(batch, ending, BatchError(code="job_failed", message=NOT_RUN))

    def _wait(self, batch: BatchRecord, status: JobStatus) -> BatchRecord | None:
        """Wait for the job, unless no worker knows its model."""
        try:
            if not status.done:
                since = batch.in_progress_at or batch.created_at
                self.models.require(status.model, self._seconds() - since)
        except ApiError as error:
            self.jobs.cancel(batch.id)
            wrong = BatchError(code=error.code or "failed", message=error.message, param=error.param)
            return self._ending(batch, Ending.FAILED, wrong)
        return batch

    def _has_ended(self, batch: BatchRecord) -> bool:
        status = self.jobs.status(batch.id)
        return status is not None and status.state.is_final

    def _stop(self, batch: BatchRecord, ending: Ending) -> BatchRecord | None:
        """End the job early. One that has ended by itself, before its batch expires, counts as completed."""
        if batch.checked is None:
            return self._ending(batch, ending)
        self.jobs.cancel(batch.id)
        status = self.jobs.status(batch.id)
        if status is not None and not status.state.is_final:
            return batch  # its last rows are written
        has_ended_itself = status is not None and _ENDINGS[status.state] is Ending.COMPLETED
        return self._ending(
            batch, Ending.COMPLETED if has_ended_itself and ending is Ending.EXPIRED else ending
        )

    def _ending(
        self, batch: BatchRecord, ending: Ending, error: BatchError | None = None
    ) -> BatchRecord | None:
        is_cancelled = batch.status is BatchStatus.CANCELLING
        status = batch.status if is_cancelled else BatchStatus.FINALIZING
        return self.store.change(
            batch, ending=ending, status=status, errors=(error,) if error else (),
            finalizing_at=None if is_cancelled else self._seconds(),
        )  # fmt: skip

    # --- The files ---

    def _write(self, batch: BatchRecord, ending: Ending, alive: Alive) -> BatchRecord | None:
        """Write both files under new names; they are the batch's once its record says so."""
        if batch.checked is None:  # it was never validated: there are no lines to answer
            return self.store.change(batch, has_files=True)
        with ExitStack() as stack:
            done, failed = (Lines(stack.enter_context(closing(self.files.receive()))) for _ in range(2))
            try:
                requests = self.store.place.open(self.store.requests_file(batch.id))
            except FileNotFoundError:  # the batch has ended meanwhile
                self._require_overtaken(batch)
                return None
            stack.enter_context(closing(requests))
            rows = self.jobs.rows(batch.checked, self.store.job_output(batch.id))
            policy = self.jobs.policy(batch.checked)
            write_answers(batch, batch.checked, ending, requests, rows, done, failed, alive, policy)
            output, error = self._kept(batch, done, "output"), self._kept(batch, failed, "error")
        changed = self.store.change(
            batch, has_files=True, output_file=output, error_file=error, counts=(done.count, failed.count)
        )
        if changed is None:
            for record in filter(None, (output, error)):
                self.files.discard(batch.owner, record.id)
        return changed

    def _require_overtaken(self, batch: BatchRecord) -> None:
        if self.store.find(batch.owner, batch.id) == batch:
            where = f"{self.store.place.uri}/{self.store.requests_file(batch.id)}"
            raise OutputDamagedError(f"{where} is gone: make the batch again")

    def _kept(self, batch: BatchRecord, lines: Lines, name: str) -> FileRecord | None:
        if not lines.count:
            return None
        record = self.files.described(
            lines.received, filename=f"{batch.id}_{name}.jsonl", purpose=Purpose.BATCH_OUTPUT,
            expires_after_seconds=batch.output_expires_after_seconds,
        )  # fmt: skip
        self.files.put_content(batch.owner, record.id, lines.received)
        return record

    def _finish(self, batch: BatchRecord) -> BatchRecord | None:
        """Let the files be found, then say that the batch has ended."""
        for record in filter(None, (batch.output_file, batch.error_file)):
            self.files.put_record(batch.owner, record)
        ending = batch.ending or Ending.COMPLETED
        return self.store.change(batch, status=ending.status, **{f"{ending.value}_at": self._seconds()})
