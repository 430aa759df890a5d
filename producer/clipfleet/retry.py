"""One retry: an ended job goes on in a new generation, with the chunks that have failed rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from uuid import uuid4

from clipfleet import keys
from clipfleet.contract import ErrorCode, Job, JobState
from clipfleet.errors import JobConflictError, OutputConflictError
from clipfleet.hints import MAX_HINTS, Hints
from clipfleet.inventory import Inventory, take_inventory
from clipfleet.job_file import Generation, job_of, note_generation
from clipfleet.ledger import Draft, JobStatus, Ledger
from clipfleet.outputs import Output
from clipfleet.parts import PartCounts, PartIdentity

_COMPLETED = (JobState.COMPLETED, JobState.COMPLETED_WITH_ERRORS)


Parts = Callable[[int], Iterable[tuple[PartIdentity, PartCounts]]]  # those in place below a number of chunks


@dataclass(frozen=True, slots=True)
class Retry:
    """Has the failed rows of a job run again, and the chunks that a cancelled or failed one never got to."""

    ledger: Ledger
    hints: Hints
    output: Output
    parts: Parts
    job: Job
    lease_seconds: float
    sleep: Callable[[float], object] = time.sleep

    def run(self, codes: Sequence[ErrorCode] = (), max_error_rate: float | None = None) -> bool:
        """Start, or leave a retry alone that is under way. `_SUCCESS` is gone when the job goes on.

        Takes a lease's time more on a store without conditional writes.

        Args:
            codes: run only rows with these error codes again; empty: all that failed.
            max_error_rate: see `Ledger.retry`.

        Returns:
            False if there is nothing to run again.

        Raises:
            JobNotFoundError: the ledger has forgotten the job, see `clipfleet.rebuild`.
            JobConflictError: the job has not ended yet, or somebody else begins a retry of it, too.
            OutputConflictError: the output does not hold this job any more.
            OutputUnavailableError: the parts cannot be read.
        """
        token = uuid4().hex
        self.ledger.begin_draft(self.job.job_id, token)
        status = self.ledger.status(self.job.job_id)
        if not status.state.is_final:
            return self._join(status)
        if not self.output.has_conditional_writes:
            # Nothing but its lease stops a writer of the last generation that is late.
            self.sleep(self.lease_seconds)
        inventory = self._take_inventory(status, codes)
        # In Redis nothing is lost of a job that has all its rows, and its chunks are not kept.
        is_whole = self.job.output_is_redis and status.state is JobState.COMPLETED
        if is_whole or (not inventory.open_chunks and status.state in _COMPLETED):
            return False
        generation = Generation(number=max(status.generation, inventory.generation) + 1, codes=tuple(codes))
        # What lives in Redis is never rebuilt, and the ledger knows the generation.
        if not self.job.output_is_redis and not note_generation(self.output, generation):
            return self._lost_to_another(status)
        self.output.remove(keys.SUCCESS)
        word, state = self.ledger.retry(
            self.job.job_id,
            token,
            draft_of(inventory),
            generation=generation.number,
            codes=codes,
            max_error_rate=max_error_rate,
        )
        if word != "started":
            return self._lost_to_another(status)
        if state is JobState.FINISHING:
            self.hints.publish_finish()
        self.hints.publish_work(min(inventory.open_chunks, MAX_HINTS))
        return True

    def _join(self, status: JobStatus) -> bool:
        """A retry that is under way is what was asked for."""
        if status.generation == 0:
            raise JobConflictError(
                f"job {self.job.job_id} is {status.state}: a retry is for a job that has ended; "
                f"follow it with `clipfleet watch {self.job.job_id}`"
            )
        return True

    def _take_inventory(self, status: JobStatus, codes: Sequence[ErrorCode]) -> Inventory:
        holder = job_of(self.output)
        if holder is None or holder.job_id != self.job.job_id:
            raise OutputConflictError(
                f"{self.output.uri} does not hold job {self.job.job_id} any more: there is nothing to retry"
            )
        parts = self.parts(status.chunks)
        return take_inventory(parts, status.chunks, lambda _, counts: not has_failed(counts, codes))

    def _lost_to_another(self, before: JobStatus) -> bool:
        status = self.ledger.status(self.job.job_id)
        if status.state in _COMPLETED and status.generation > before.generation:
            self.output.create(keys.SUCCESS, b"")  # it is over already: what we removed was its own
        if status.state.is_final:
            raise JobConflictError(f"another retry of job {self.job.job_id} was begun meanwhile: try again")
        return self._join(status)


def has_failed(counts: PartCounts, codes: Sequence[str]) -> bool:
    """Whether a part has rows that a retry of these error codes (empty: all) runs again."""
    return any(counts.codes.get(code, 0) for code in codes) if codes else counts.failed > 0


def draft_of(inventory: Inventory, staged: Sequence[tuple[int, int]] = ()) -> Draft:
    """What the ledger is told of an inventory."""
    counts = inventory.counts
    return Draft(
        inventory.done, inventory.due, inventory.next_chunk, counts.ok, counts.failed, counts.codes, staged
    )
