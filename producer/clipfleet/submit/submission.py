"""One submit: claim the output, stage the items, record them in the ledger, notify workers. Idempotent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain

import pyarrow as pa

from clipfleet.contract.jobs import Job, JobState
from clipfleet.errors import (
    JobConflictError,
    OutputConflictError,
    OutputUnavailableError,
    OutputUnreachableError,
    QuotaExceededError,
    SourceChangedError,
    SourceError,
    TooManyItemsError,
    WorldError,
)
from clipfleet.heads.files import HeadFile
from clipfleet.hints import MAX_HINTS, Hints
from clipfleet.ledger.answers import SealAnswer, StageAnswer
from clipfleet.ledger.jobs import DEFAULT_RETENTION, JobStatus, Ledger, Retention
from clipfleet.outputs import Output, objects
from clipfleet.outputs.job_file import StagedNote, job_of
from clipfleet.outputs.overwriting import Overwriting
from clipfleet.settings import DAY_SECONDS
from clipfleet.sources import Source
from clipfleet.store.gone_items import write_gone
from clipfleet.submit.contents import Contents
from clipfleet.submit.redis_bound import within_redis
from clipfleet.submit.small_jobs import look_ahead
from clipfleet.submit.staging import CHUNKS_PER_FILE, StagedFile, Stager
from clipfleet.wording import counted

MAX_CHECKED_ITEMS = 1_000_000  # by a repeated submit: listing more takes minutes, in some stores hours
GoneItems = Callable[[], Iterable[pa.RecordBatch]]  # see `write_gone`

_STREAMS = ("stdin", "iterable")  # kinds of sources that may block


@dataclass(slots=True)
class Submission:
    """Submits one job from its source to the ledger."""

    ledger: Ledger
    hints: Hints
    output: Output
    job: Job
    retention: Retention = DEFAULT_RETENTION
    traceparent: str = ""
    overwriting: Overwriting | None = None
    chooses_chunk_size: bool = False  # a new job gets that of `small_jobs`
    heads: Sequence[HeadFile] = ()  # of the job
    gone: GoneItems | None = None  # of a job that fills a store
    on_claimed: Callable[[], object] = lambda: None  # called once the output is that of the job
    resumes: bool = False  # the caller submits again until it succeeds, or cancels the job itself
    hinted: int = field(default=0, init=False)

    def run(self, source: Source, *, overwrite: bool = False, check_source: bool = False) -> bool:
        """Submit; resume an equal job with this id, or leave it unchanged if it is sealed.

        The source of a sealed job is read again and must not have changed; with more than a million items,
        only with `check_source`.

        Nothing is removed from the output before the ledger has accepted the job. A new job with an unusable
        source or output is cancelled, see `resumes`. If the job fails meanwhile because workers cannot write
        rows, the submit ends, and the job's status has the reason.

        Returns:
            Whether the job had ended before; nothing was done.

        Raises:
            JobConflictError: a different job has this id.
            OutputConflictError: the output contains another job.
            SourceError: the source has no images or cannot be read.
            SourceChangedError: the source differs from what earlier submits of this job staged.
            TooManyItemsError: too many items for Redis; the job is cancelled.
            QuotaExceededError: the quota is used up; submit again with the same job id to resume later.
            OutputUnavailableError, RedisUnavailableError: submit again with the same job id to resume.
        """
        contents = Contents()
        batches = self._first_batches(source, contents)
        overwriting = self._overwriting()
        with naming_the_way_out(self.job):
            must_clear = overwriting.is_due(is_wanted=overwrite)
        is_new, state = self._known(overwriting)
        status = self.ledger.status(self.job.job_id)
        if state.is_final or status.sealed:
            if must_clear:
                raise JobConflictError(
                    f"job {self.job.job_id} is {state}: `overwrite=True` needs a new job id"
                )
            if check_source or status.total <= MAX_CHECKED_ITEMS:
                self._require_unchanged(status, batches, contents)
            return state.is_final
        try:
            with naming_the_way_out(self.job):
                if must_clear:
                    overwriting.run()
                self._claim_output()
            self._stage(batches, contents)
        except _JobEndedError:
            self._require_stopped()
        except SourceChangedError:
            raise
        except QuotaExceededError as error:
            raise QuotaExceededError(f"{error}; then {self._way_to_resume}") from error
        except TooManyItemsError:
            self.ledger.cancel(self.job.job_id, ttl_seconds=DAY_SECONDS)
            self.output.clear()
            raise
        except (SourceError, OutputConflictError, OutputUnreachableError) as error:
            if is_new and not (self.resumes and isinstance(error, OutputUnreachableError)):
                self.ledger.cancel(self.job.job_id, ttl_seconds=DAY_SECONDS)
            raise
        except WorldError as error:
            raise type(error)(f"{error}; {self._way_to_resume}") from error
        return False

    def _first_batches(self, source: Source, contents: Contents) -> Iterator[pa.RecordBatch]:
        """All batches; the first ones are read, which shows whether the source is usable, and small."""
        batches = _peeked(self._bounded(source, contents))
        if self.chooses_chunk_size:
            size, batches = look_ahead(batches)
            self.job = self.job.model_copy(update={"chunk_size": size})
        return batches

    def _overwriting(self) -> Overwriting:
        overwriting = self.overwriting or Overwriting(self.ledger, self.output, self.job)
        overwriting.job = self.job  # which may have its chunk size now
        return overwriting

    def _known(self, overwriting: Overwriting) -> tuple[bool, JobState]:
        """Make the ledger know the job; one that it knows goes on as it is, maybe from an older version."""
        try:
            is_new, state = self.ledger.submit(self.job, self.retention, self.traceparent)
        except JobConflictError:
            if not self.chooses_chunk_size:
                raise
            # A submit at the same time may have read more, or less, ahead, and have chosen another size.
            size = self.ledger.job(self.job.job_id).chunk_size
            self.job = self.job.model_copy(update={"chunk_size": size})
            is_new, state = self.ledger.submit(self.job, self.retention, self.traceparent)
        if not is_new:
            self.job = overwriting.job = self.ledger.job(self.job.job_id)
        return is_new, state

    @property
    def _way_to_resume(self) -> str:
        return f"submit again with job id {self.job.job_id} to resume"

    def _require_unchanged(
        self, status: JobStatus, batches: Iterator[pa.RecordBatch], contents: Contents
    ) -> None:
        """Raise `SourceChangedError` unless the source is as it was when the job was sealed.

        Stops reading once there are more items than are compared.
        """
        if not status.source_sum:  # not sealed, or sealed by an older version
            return
        most = max(status.total, MAX_CHECKED_ITEMS)
        for _ in batches:
            if contents.items > most:
                break
        if contents.items != status.total:
            now = f"more than {most:,}" if contents.items > most else f"{contents.items:,}"
            change = f"; the source now has {now}"
        elif contents.sum != status.source_sum:
            change = ", and the source has changed since"
        else:
            return
        items = counted(status.total, "item")
        raise SourceChangedError(f"job {status.job_id} holds {items}{change}: choose another `job_id=`")

    def _bounded(self, source: Source, contents: Contents) -> Iterator[pa.RecordBatch]:
        batches = contents.counted(source.batches())
        if not self.job.output_is_redis:
            return batches
        return within_redis(batches, look_ahead=source.description.kind not in _STREAMS)

    def _claim_output(self) -> None:
        """Create what lies beside the items: the job file, the heads that its workers read, what is gone."""
        if not self.output.create(objects.JOB_FILE, self.job.model_dump_json(indent=1).encode()):
            self._require_claimed()
        for one in self.heads:
            self._place_head(one)
        self.on_claimed()
        if self.gone is not None:
            write_gone(self.output, self.gone(), confirm=self._require_open)

    def _require_claimed(self) -> None:
        holder = job_of(self.output)
        if holder is None:
            raise OutputUnavailableError(f"{self.output.uri}/{objects.JOB_FILE}: was not written")
        if not holder.is_same(self.job):
            raise OutputConflictError(f"{self.output.uri} was taken by another job in the meantime")

    def _place_head(self, head: HeadFile) -> None:
        name = objects.head_file(head.of_job.sha256)
        if self.output.create(name, head.data, confirm=self._require_open):
            return
        there = self.output.read(name)
        if there is None:  # Redis takes nothing for a job that has ended
            self._require_open()
            raise OutputUnavailableError(f"{self.output.uri}/{name}: was not written")
        if there != head.data:  # damaged
            self.output.replace(name, head.data, confirm=self._require_open)

    def _stage(self, batches: Iterator[pa.RecordBatch], contents: Contents) -> None:
        job_id = self.job.job_id
        already = self.ledger.staged_files(job_id)
        files, items = tuple(already), self.ledger.status(job_id).total
        self._hint(sum(count for _, count in files))
        stager = Stager(
            self.output,
            job_id,
            self.job.chunk_size if self.job.vectors is None else 1,  # a staged range is a chunk
            self.job.schema_version,
            chunks_per_file=self._chunks_per_file(),
            confirm=self._require_open,
        )
        note = None if self.job.output_is_redis else StagedNote(self.output)

        def require_unknown(first_chunk: int) -> None:
            if self.ledger.status(job_id).chunks > first_chunk or (note and not note.is_the_last):
                raise self._two_submits()

        for file in stager.stage(batches, already, require_unknown):
            files, items = (*files, (file.first_chunk, file.chunks)), items + file.items
            if note is not None and not note.write(files, items):
                raise self._two_submits()
            if not self._record(file):
                return
            self._hint(file.chunks)
        if note is not None and not note.write(files, items, is_sealed=True, source_sum=contents.sum):
            raise self._two_submits()
        word = self.ledger.seal(job_id, sum(count for _, count in files), items, contents.sum)
        if word is SealAnswer.REFUSED:
            self._require_stopped()
        elif word is not SealAnswer.SEALED:
            raise JobConflictError(f"job {job_id} was changed by another program ({word})")

    def _chunks_per_file(self) -> int:
        """Keep files small enough for the quota, which would never admit a larger one."""
        most_items = self.ledger.quota.items
        if not most_items:
            return CHUNKS_PER_FILE
        return max(1, min(CHUNKS_PER_FILE, most_items // (4 * self.job.chunk_size)))

    def _record(self, file: StagedFile) -> bool:
        """Record the chunks of a file in the ledger; False if the job has failed meanwhile."""
        try:
            word = self.ledger.stage(self.job.job_id, file.first_chunk, file.chunks, file.items)
        except QuotaExceededError:
            if self.job.output_is_redis:  # it uses the quota itself; the resumed submit writes it again
                self.output.remove(file.name)
            raise
        if word is StageAnswer.GAP:
            raise self._two_submits()
        if word is StageAnswer.REFUSED:
            self._require_stopped()
            return False
        return True

    def _require_open(self) -> None:
        """Check before a staged file becomes visible: another job may own the output of an ended one."""
        if self.ledger.status(self.job.job_id).state.is_final:
            raise _JobEndedError

    def _two_submits(self) -> JobConflictError:
        return JobConflictError(f"another submit of job {self.job.job_id} is running")

    def _require_stopped(self) -> None:
        """Raise, unless the job failed or stopped by itself: its status has the reason then."""
        status = self.ledger.status(self.job.job_id)
        if status.state is not JobState.FAILED and not status.has_stopped_itself:
            raise JobConflictError(f"job {self.job.job_id} accepts no more items: it is {status.state}")

    def _hint(self, chunks: int) -> None:
        count = min(chunks, MAX_HINTS - self.hinted)
        if count > 0:
            self.hints.publish_work(count)
            self.hinted += count


class _JobEndedError(Exception):
    """The job has ended during its submit."""


@contextmanager
def naming_the_way_out(job: Job) -> Iterator[None]:
    """Add the way out to errors of the first calls of a job's output."""
    try:
        yield
    except OutputUnreachableError as error:
        option = "`output=`" if job.store is None else "`store=`"
        raise OutputUnreachableError(
            f"{error}: choose another {option}, or make this one writable"
        ) from error


def _peeked(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Read the first batch early, so that an unusable source fails before anything is created."""
    first = next(batches, None)
    return batches if first is None else chain([first], batches)
