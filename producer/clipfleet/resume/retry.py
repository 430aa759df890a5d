"""One retry: restarts an ended job in a new generation, with the chunks that have failed rows."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from uuid import uuid4

from clipfleet.contract.jobs import ErrorCode, Job, JobState
from clipfleet.contract.parts import PartCounts, PartIdentity
from clipfleet.errors import JobConflictError, OutputConflictError, OutputDamagedError, OutputUnavailableError
from clipfleet.hints import MAX_HINTS, Hints
from clipfleet.ledger.answers import RetryAnswer
from clipfleet.ledger.jobs import Draft, JobStatus, Ledger
from clipfleet.outputs import Output, objects
from clipfleet.outputs.job_file import Generation, job_of, note_generation
from clipfleet.outputs.objects import layout_of
from clipfleet.parts import parts_of, read_ahead
from clipfleet.resume.committed import require_open

IsDone = Callable[[PartIdentity, PartCounts], bool]


@dataclass(frozen=True, slots=True)
class Inventory:
    """Which chunks of a job are done, and which are not."""

    done: bytes  # bitmap; chunk 0 is the highest bit of the first byte
    due: tuple[int, ...]  # chunks below `next_chunk` without a part, or with one to replace
    next_chunk: int  # after the last part
    counts: PartCounts  # rows of the done chunks
    generation: int  # of the newest part, 0 if there is none
    chunks: int  # of the job

    @property
    def open_chunks(self) -> int:
        """Chunks that are not done."""
        return len(self.due) + self.chunks - self.next_chunk


def take_inventory(
    parts: Iterable[tuple[PartIdentity, PartCounts]], chunks: int, is_done: IsDone
) -> Inventory:
    """Take the inventory of all parts of a job.

    Args:
        parts: existing parts, in any order.
        chunks: number of staged chunks; all parts must be below it.
        is_done: whether a part can be kept.
    """
    done, found = bytearray(-(-chunks // 8)), bytearray(chunks)
    ok = failed = generation = 0
    codes: Counter[str] = Counter()
    for identity, counts in parts:
        found[identity.chunk_id] = 1
        generation = max(generation, identity.generation)
        if is_done(identity, counts):
            done[identity.chunk_id // 8] |= 0x80 >> identity.chunk_id % 8
            ok, failed = ok + counts.ok, failed + counts.failed
            codes.update(counts.codes)
    next_chunk = found.rfind(1) + 1
    due = tuple(chunk for chunk in range(next_chunk) if not done[chunk // 8] & 0x80 >> chunk % 8)
    return Inventory(bytes(done), due, next_chunk, PartCounts(ok, failed, dict(codes)), generation, chunks)


def parts_in_place(output: Output, job: Job, chunks: int) -> Iterator[tuple[PartIdentity, PartCounts]]:
    """Read the footers of a job's parts below the given number of chunks.

    Raises:
        OutputConflictError: a part belongs to another chunk.
        OutputDamagedError: a part is damaged.
        OutputUnavailableError: the output cannot be read now.
    """
    depth = parts_of(job).footer_readers
    found = read_ahead(partial(_footer, output, job), chunk_ids(output, job, chunks), depth=depth)
    return (part for part in found if part is not None)


def chunk_ids(output: Output, job: Job, chunks: int) -> Iterator[int]:
    """Chunks of a job with a part, below the given number."""
    prefix, suffix = layout_of(job.schema_version).part_prefix, f".{job.part_format}"
    for name in output.names(prefix):
        digits = name.removeprefix(prefix).removesuffix(suffix)
        if name.endswith(suffix) and digits.isdecimal() and int(digits) < chunks:
            yield int(digits)


def _footer(output: Output, job: Job, chunk_id: int) -> tuple[PartIdentity, PartCounts] | None:
    """Read a footer; None for a late part of an earlier job, whose chunk runs again and replaces it."""
    files = parts_of(job)
    where = f"{output.uri}/{files.name(chunk_id)}"
    try:
        with files.open(output, files.name(chunk_id)) as part:
            identity, counts = part.footer()
    except FileNotFoundError as error:
        raise OutputUnavailableError(f"{where} was removed while it was read") from error
    except (ValueError, OutputDamagedError) as error:
        raise OutputDamagedError(
            f"{where} is not a complete part ({error}): remove it, and its chunk runs again"
        ) from error
    if identity.job_id != job.job_id:
        return None
    identity.require(job.job_id, chunk_id, where)
    return identity, counts


_COMPLETED = (JobState.COMPLETED, JobState.COMPLETED_WITH_ERRORS)


Parts = Callable[[int], Iterable[tuple[PartIdentity, PartCounts]]]  # existing parts below a number of chunks


@dataclass(frozen=True, slots=True)
class Retry:
    """Retries the failed rows of a job, and the chunks that a cancelled or failed job never reached."""

    ledger: Ledger
    hints: Hints
    output: Output
    parts: Parts
    job: Job
    lease_seconds: float
    sleep: Callable[[float], object] = time.sleep
    require_items: Callable[[], object] = lambda: None  # raises if they cannot be processed again

    def run(self, codes: Sequence[ErrorCode] = (), max_error_rate: float | None = None) -> bool:
        """Start a retry, or join one in progress. `_SUCCESS` is removed before the job restarts.

        Waits for the duration of a lease on a store without conditional writes.

        Args:
            codes: retry only rows with these error codes; empty: all failed rows.
            max_error_rate: see `Ledger.retry`.

        Returns:
            False if there is nothing to retry.

        Raises:
            JobNotFoundError: the job has expired in the ledger, see `clipfleet.resume.rebuild`.
            JobConflictError: the job has not ended yet, or another retry began at the same time.
            OutputConflictError: the output no longer contains this job.
            OutputUnavailableError: the parts cannot be read.
            UsageError: as `require_items` raises it; or the job has filled a store.
        """
        token = uuid4().hex
        self.ledger.drafts.begin(self.job.job_id, token)
        status = self.ledger.status(self.job.job_id)
        if not status.state.is_final:
            return self._join(status)
        require_open(self.job, self.output)
        if not self.output.has_conditional_writes:
            # Only its lease stops a late writer of the previous generation.
            self.sleep(self.lease_seconds)
        inventory = self._take_inventory(status, codes)
        # In Redis a completed job has all its rows, and its chunks are not kept.
        is_whole = self.job.output_is_redis and status.state is JobState.COMPLETED
        if is_whole or (not inventory.open_chunks and status.state in _COMPLETED):
            return False
        self.require_items()
        generation = Generation(number=max(status.generation, inventory.generation) + 1, codes=tuple(codes))
        # A job in Redis is never rebuilt, and the ledger knows the generation.
        if not self.job.output_is_redis and not note_generation(self.output, generation):
            return self._lost_to_another(status)
        self.output.remove(objects.SUCCESS)
        word, state = self.ledger.drafts.retry(
            self.job.job_id,
            token,
            draft_of(inventory),
            generation=generation.number,
            codes=codes,
            max_error_rate=max_error_rate,
        )
        if word is not RetryAnswer.STARTED:
            return self._lost_to_another(status)
        if state is JobState.FINISHING:
            self.hints.publish_finish()
        self.hints.publish_work(min(inventory.open_chunks, MAX_HINTS))
        return True

    def _join(self, status: JobStatus) -> bool:
        """Join a retry in progress, unless the job never ended."""
        if status.generation == 0:
            raise JobConflictError(
                f"job {self.job.job_id} is {status.state}: retry needs an ended job; "
                f"follow it with `clipfleet watch {self.job.job_id}`"
            )
        return True

    def _take_inventory(self, status: JobStatus, codes: Sequence[ErrorCode]) -> Inventory:
        holder = job_of(self.output)
        if holder is None or holder.job_id != self.job.job_id:
            raise OutputConflictError(
                f"{self.output.uri} no longer contains job {self.job.job_id}: nothing to retry"
            )
        is_told = self._is_told(status)
        return take_inventory(
            self.parts(status.chunks),
            status.chunks,
            lambda identity, counts: not has_failed(counts, codes) and is_told(identity),
        )

    def _is_told(self, status: JobStatus) -> Callable[[PartIdentity], bool]:
        """Whether the decisions of a part were announced, or need not be.

        A worker that was cut off may have left a part without that. Rows in Redis become visible, and an
        ended job complete, only with the announcement.
        """
        if not self.job.announces_decisions or self.job.output_is_redis or status.state in _COMPLETED:
            return lambda _: True
        decided = self.ledger.decided_chunks(self.job.job_id)
        return lambda identity: decided.get(identity.chunk_id, -1) >= identity.generation

    def _lost_to_another(self, before: JobStatus) -> bool:
        status = self.ledger.status(self.job.job_id)
        if status.state in _COMPLETED and status.generation > before.generation:
            self.output.create(
                objects.SUCCESS, b""
            )  # it has ended already: restore the `_SUCCESS` that we removed
        if status.state.is_final:
            raise JobConflictError(
                f"another retry of job {self.job.job_id} began at the same time: try again"
            )
        return self._join(status)


def has_failed(counts: PartCounts, codes: Sequence[str]) -> bool:
    """Whether a part has rows that a retry of these error codes (empty: all) covers."""
    return any(counts.codes.get(code, 0) for code in codes) if codes else counts.failed > 0


def draft_of(inventory: Inventory, staged: Sequence[tuple[int, int]] = ()) -> Draft:
    """Convert an inventory to the draft for the ledger."""
    counts = inventory.counts
    return Draft(
        inventory.done, inventory.due, inventory.next_chunk, counts.ok, counts.failed, counts.codes, staged
    )
