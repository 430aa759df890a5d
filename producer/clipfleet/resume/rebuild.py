"""Puts a job back into a ledger that has lost it, as its output tells it. Safe to repeat."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from uuid import uuid4

from clipfleet.contract.jobs import Job, JobState
from clipfleet.contract.parts import PartCounts, PartIdentity
from clipfleet.errors import JobConflictError, JobNotFoundError
from clipfleet.hints import MAX_HINTS, Hints
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import Ledger
from clipfleet.outputs import Output
from clipfleet.outputs.job_file import Generation, StagedFiles, generation_of, staged_files
from clipfleet.outputs.staged import StagedReader
from clipfleet.resume.retry import Inventory, draft_of, has_failed, parts_in_place, take_inventory


@dataclass(frozen=True, slots=True)
class Rebuild:
    """For one output that holds a job."""

    ledger: Ledger
    hints: Hints
    output: Output
    job: Job  # that the output holds
    job_ttl_seconds: int

    def run(self) -> JobState:
        """Have the ledger know the job of the output, and return its state; a known job stays as it is.

        Chunks whose part is in place are done. A job that had ended is over; one whose items are all staged
        goes on, with its retry if it was in one; of any other the same submit goes on.

        Raises:
            JobConflictError: the ledger knows another job of this id, or another rebuild began meanwhile.
            OutputConflictError: the output holds parts of another job.
            OutputUnavailableError: the output cannot be read.
        """
        return self._known_state() or self._rebuild()

    def _known_state(self) -> JobState | None:
        job = self.job
        try:
            known, state = self.ledger.job(job.job_id), self.ledger.status(job.job_id).state
        except JobNotFoundError:
            return None
        if known.fingerprint != job.fingerprint:
            raise JobConflictError(
                f"{self.output.uri} holds a job {job.job_id}, but the ledger knows another one of this id, "
                f"with output {known.output}"
            )
        return state

    def _rebuild(self) -> JobState:
        job, token = self.job, uuid4().hex
        self.ledger.begin_draft(job.job_id, token)
        staged = staged_files(self.output)
        chunks = sum(count for _, count in staged.files)
        generation = generation_of(self.output)
        is_over = self.output.read(keys.SUCCESS) is not None
        inventory = self._take_inventory(chunks, None if is_over else generation)
        if is_over and inventory.open_chunks:  # a part has gone
            is_over = False
            self.output.remove(keys.SUCCESS)
        _, state = self.ledger.rebuild(
            job,
            token,
            draft_of(inventory, staged.files),
            state=_state(staged, inventory, is_over=is_over),
            generation=max(generation.number, inventory.generation),
            codes=generation.codes,
            items=self._count_items(staged),
            ttl_seconds=self.job_ttl_seconds,
            source_sum=staged.source_sum,
            finished_at=self._finished_at() if is_over else None,
        )
        if state is None:
            raise JobConflictError(f"another rebuild of {self.output.uri} began at the same time")
        if state is JobState.FINISHING:
            self.hints.publish_finish()
        elif not state.is_final:
            self.hints.publish_work(min(inventory.open_chunks, MAX_HINTS))
        return state

    def _finished_at(self) -> datetime | None:
        """When the job ended, as its manifest says; None if that cannot be read."""
        data = self.output.read(keys.MANIFEST)
        try:
            return datetime.fromisoformat(json.loads(data or b"")["finished_at"])
        except (ValueError, LookupError, TypeError, RecursionError):
            return None

    def _count_items(self, staged: StagedFiles) -> int:
        """Of all staged files. The last one of a submit that was killed may be another than was noted."""
        if staged.is_sealed:
            return staged.items
        with StagedReader(self.output, job_id=self.job.job_id) as reader:
            return sum(reader.count_items(first, count) for first, count in staged.files)

    def _take_inventory(self, chunks: int, retried: Generation | None) -> Inventory:
        """The chunks of a job; those that a retry which is under way has not got to are not done."""

        def is_done(identity: PartIdentity, counts: PartCounts) -> bool:
            return (
                retried is None
                or identity.generation >= retried.number
                or not has_failed(counts, retried.codes)
            )

        return take_inventory(parts_in_place(self.output, self.job, chunks), chunks, is_done)


def _state(staged: StagedFiles, inventory: Inventory, *, is_over: bool) -> JobState:
    if not staged.is_sealed:
        return JobState.SUBMITTING
    if not is_over:
        return JobState.RUNNING
    return JobState.COMPLETED_WITH_ERRORS if inventory.counts.failed else JobState.COMPLETED
