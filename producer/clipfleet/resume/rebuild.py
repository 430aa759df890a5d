"""Restores a job from its output into a ledger that has lost it. Idempotent."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from uuid import uuid4

from clipfleet.contract.jobs import Job, JobState
from clipfleet.contract.parts import PartCounts, PartIdentity
from clipfleet.errors import JobConflictError, JobNotFoundError
from clipfleet.hints import MAX_HINTS, Hints
from clipfleet.ledger.jobs import Ledger
from clipfleet.outputs import Output, objects
from clipfleet.outputs.job_file import Generation, StagedFiles, generation_of, staged_files
from clipfleet.outputs.staged import StagedReader
from clipfleet.resume.committed import require_open
from clipfleet.resume.retry import Inventory, chunk_ids, draft_of, has_failed, parts_in_place, take_inventory
from clipfleet.store.committing.model import model_of_rows


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Restores the job of one output."""

    ledger: Ledger
    hints: Hints
    output: Output
    job: Job  # of the output
    job_ttl_seconds: int
    require_items: Callable[[], object] = lambda: None  # raises if they cannot be processed

    def run(self) -> JobState:
        """Restore the job in the ledger, and return its state; a known job gets the staged files it lacks.

        Chunks with a part count as done. An ended job stays ended; a job with all items staged resumes, in
        its retry if it had one; any other is resumed by the same submit.

        Raises:
            JobConflictError: the ledger knows a different job with this id, or another rebuild began.
            OutputConflictError: the output contains parts of another job.
            OutputUnavailableError: the output cannot be read.
            UsageError: as `require_items` raises it; or the job has filled a store.
        """
        state = self._known_state()
        if state is None:
            return self._rebuild()
        return self._handed_over(state)

    def _known_state(self) -> JobState | None:
        job = self.job
        try:
            known, state = self.ledger.job(job.job_id), self.ledger.status(job.job_id).state
        except JobNotFoundError:
            return None
        if known.fingerprint != job.fingerprint:
            raise JobConflictError(
                f"{self.output.uri} contains job {job.job_id}, but the ledger has a different one with this "
                f"id, with output {known.output}"
            )
        return state

    def _handed_over(self, state: JobState) -> JobState:
        """Seal a job that a restored copy of Redis has as it was during its submit.

        Only what the output lists as final: the source, which the submit would read again, may have changed.
        """
        job_id = self.job.job_id
        staged = (
            staged_files(self.output) if state in (JobState.SUBMITTING, JobState.PAUSED) else StagedFiles()
        )
        if not staged.is_sealed or self.ledger.status(job_id).sealed or self._has_ended():
            return state
        known = self.ledger.staged_files(job_id)
        with self._staged_reader() as reader:
            for first_chunk, chunks in staged.files:
                if (first_chunk, chunks) not in known:
                    self.ledger.stage(job_id, first_chunk, chunks, reader.count_items(first_chunk, chunks))
        total = sum(chunks for _, chunks in staged.files)
        self.ledger.seal(job_id, total, staged.items, staged.source_sum)
        self.hints.publish_work(min(total, MAX_HINTS))
        return self.ledger.status(job_id).state

    def _has_ended(self) -> bool:
        return self.output.read(objects.SUCCESS) is not None

    def _staged_reader(self) -> StagedReader:
        return StagedReader(self.output, job_id=self.job.job_id, schema_version=self.job.schema_version)

    def _rebuild(self) -> JobState:
        job, token = self.job, uuid4().hex
        require_open(job, self.output)
        self.ledger.drafts.begin(job.job_id, token)
        staged = staged_files(self.output)
        chunks = sum(count for _, count in staged.files)
        generation = generation_of(self.output)
        is_over = self._has_ended()
        inventory = self._take_inventory(chunks, None if is_over else generation)
        if inventory.open_chunks:
            self.require_items()
        if is_over and inventory.open_chunks:  # a part is missing
            is_over = False
            self.output.remove(objects.SUCCESS)
        _, state = self.ledger.drafts.rebuild(
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
            fingerprint_of_vectors=self._fingerprint_of_vectors(chunks),
        )
        if state is None:
            raise JobConflictError(f"another rebuild of {self.output.uri} began at the same time")
        if state is JobState.FINISHING:
            self.hints.publish_finish()
        elif not state.is_final:
            self.hints.publish_work(min(inventory.open_chunks, MAX_HINTS))
        return state

    def _fingerprint_of_vectors(self, chunks: int) -> str:
        """That of the rows that are there; other workers must not add those of another model."""
        if self.job.store is None or self.job.store.fingerprint is not None:
            return ""
        return model_of_rows(self.job, self.output, chunk_ids(self.output, self.job, chunks))

    def _finished_at(self) -> datetime | None:
        """When the job ended, from its manifest; None if unreadable."""
        data = self.output.read(objects.MANIFEST)
        try:
            return datetime.fromisoformat(json.loads(data or b"")["finished_at"])
        except (ValueError, LookupError, TypeError, RecursionError):
            return None

    def _count_items(self, staged: StagedFiles) -> int:
        """Count all staged items. The last file of a killed submit may differ from the recorded one."""
        if staged.is_sealed:
            return staged.items
        with self._staged_reader() as reader:
            return sum(reader.count_items(first, count) for first, count in staged.files)

    def _take_inventory(self, chunks: int, retried: Generation | None) -> Inventory:
        """Take the inventory of a job; chunks that a retry in progress has not reached are not done."""

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
