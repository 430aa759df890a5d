"""One submit: claim the output, stage the items, tell the ledger, wake the workers. Safe to repeat."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.jobs import MAX_ITEMS_IN_REDIS, Job, JobState
from clipfleet.contract.parts import INLINE_COLUMN, VERSION_COLUMN
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
from clipfleet.hints import MAX_HINTS, Hints
from clipfleet.ledger import keys
from clipfleet.ledger.answers import SealAnswer, StageAnswer
from clipfleet.ledger.jobs import DEFAULT_RETENTION, JobStatus, Ledger, Retention
from clipfleet.outputs import Output
from clipfleet.outputs.job_file import StagedNote, job_of
from clipfleet.outputs.overwriting import Overwriting
from clipfleet.settings import DAY_SECONDS
from clipfleet.sources import Source
from clipfleet.sources.uris import local_path
from clipfleet.submit.staging import CHUNKS_PER_FILE, StagedFile, Stager

MAX_CHECKED_ITEMS = 1_000_000  # of a repeated submit: listing more takes minutes, from some stores hours
_STREAMS = ("stdin", "iterable")  # kinds of sources that come as slowly as somebody else makes them


@dataclass(slots=True)
class Submission:
    """Brings one job from its source into the ledger."""

    ledger: Ledger
    hints: Hints
    output: Output
    job: Job
    retention: Retention = DEFAULT_RETENTION
    traceparent: str = ""
    overwriting: Overwriting | None = None
    hinted: int = field(default=0, init=False)

    def run(self, source: Source, *, overwrite: bool = False, check_source: bool = False) -> bool:
        """Submit; an equal job of this id is resumed where it stopped, or left as it is if it was sealed.

        The source of a sealed job is read again and must not have changed; that of one with more than a
        million items only with `check_source`.

        Nothing is removed from the output before the ledger has taken the job. A new job whose source or
        output turns out to be unusable is cancelled. One that fails meanwhile, because workers can write no
        rows, ends the submit: its status says why.

        Returns:
            Whether the job had ended before: then nothing was done.

        Raises:
            JobConflictError: the id is taken by a job that differs.
            OutputConflictError: the output holds another job.
            SourceError: the source holds no images or cannot be read.
            SourceChangedError: the source differs from what earlier submits of this job staged.
            TooManyItemsError: the output is Redis, and they are more than it keeps: the job is cancelled.
            QuotaExceededError: there is no room now; submit again with the same job id to go on later.
            OutputUnavailableError, RedisUnavailableError: submit again with the same job id to go on.
        """
        overwriting = self.overwriting or Overwriting(self.ledger, self.output, self.job)
        contents = Contents()
        batches = _peeked(self._bounded(source, contents))
        with naming_the_way_out():
            must_clear = overwriting.is_due(is_wanted=overwrite)
        is_new, state = self.ledger.submit(self.job, self.retention, self.traceparent)
        status = self.ledger.status(self.job.job_id)
        if state.is_final or status.sealed:
            if must_clear:
                raise JobConflictError(f"job {self.job.job_id} is {state}: --overwrite needs a new job id")
            if check_source or status.total <= MAX_CHECKED_ITEMS:
                self._require_unchanged(status, batches, contents)
            return state.is_final
        try:
            with naming_the_way_out():
                if must_clear:
                    overwriting.run()
                self._claim_output()
            self._stage(batches, contents)
        except _JobEndedError:
            self._require_stopped()
        except SourceChangedError:
            raise
        except QuotaExceededError as error:
            raise QuotaExceededError(f"{error}; then {self._goes_on}") from error
        except TooManyItemsError:
            self.ledger.cancel(self.job.job_id, ttl_seconds=DAY_SECONDS)
            self.output.clear()
            raise
        except (SourceError, OutputConflictError, OutputUnreachableError):
            if is_new:
                self.ledger.cancel(self.job.job_id, ttl_seconds=DAY_SECONDS)
            raise
        except WorldError as error:
            raise type(error)(f"{error}; {self._goes_on}") from error
        return False

    @property
    def _goes_on(self) -> str:
        return f"the same submit with job id {self.job.job_id} goes on"

    def _require_unchanged(
        self, status: JobStatus, batches: Iterator[pa.RecordBatch], contents: Contents
    ) -> None:
        """Raise `SourceChangedError` unless the source holds what it held when the job was sealed.

        A source that has grown beyond all that is compared is not read to its end.
        """
        if not status.source_sum:  # not sealed, or by an older version
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
        items = f"{status.total:,} item{'' if status.total == 1 else 's'}"
        raise SourceChangedError(f"job {status.job_id} holds {items}{change}: choose another --job-id")

    def _bounded(self, source: Source, contents: Contents) -> Iterator[pa.RecordBatch]:
        batches = contents.counted(source.batches())
        if not self.job.output_is_redis:
            return batches
        return within_redis(batches, look_ahead=source.description.kind not in _STREAMS)

    def _claim_output(self) -> None:
        if self.output.create(keys.JOB_FILE, self.job.model_dump_json(indent=1).encode()):
            return
        holder = job_of(self.output)
        if holder is None:
            raise OutputUnavailableError(f"{self.output.uri}/{keys.JOB_FILE}: was not written")
        if not holder.is_same(self.job):
            raise OutputConflictError(f"{self.output.uri} was taken by another job meanwhile")

    def _stage(self, batches: Iterator[pa.RecordBatch], contents: Contents) -> None:
        job_id = self.job.job_id
        already = self.ledger.staged_files(job_id)
        files, items = tuple(already), self.ledger.status(job_id).total
        self._hint(sum(count for _, count in files))
        stager = Stager(
            self.output,
            job_id,
            self.job.chunk_size,
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
            if not self._tell(file):
                return
            self._hint(file.chunks)
        if note is not None and not note.write(files, items, is_sealed=True, source_sum=contents.sum):
            raise self._two_submits()
        word = self.ledger.seal(job_id, sum(count for _, count in files), items, contents.sum)
        if word is SealAnswer.REFUSED:
            self._require_stopped()
        elif word is not SealAnswer.SEALED:
            raise JobConflictError(f"job {job_id} was changed by somebody else meanwhile ({word})")

    def _chunks_per_file(self) -> int:
        """Several files go into a quota: one that is too large for it would never be taken."""
        most_items = self.ledger.quota.items
        if not most_items:
            return CHUNKS_PER_FILE
        return max(1, min(CHUNKS_PER_FILE, most_items // (4 * self.job.chunk_size)))

    def _tell(self, file: StagedFile) -> bool:
        """Make the chunks of a file known; False if the job has failed meanwhile."""
        try:
            word = self.ledger.stage(self.job.job_id, file.first_chunk, file.chunks, file.items)
        except QuotaExceededError:
            if self.job.output_is_redis:  # it takes the room itself; the submit that goes on writes it again
                self.output.remove(file.name)
            raise
        if word is StageAnswer.GAP:
            raise self._two_submits()
        if word is StageAnswer.REFUSED:
            self._require_stopped()
            return False
        return True

    def _require_open(self) -> None:
        """Before a staged file becomes visible: by now another job may have the output of one that ended."""
        if self.ledger.status(self.job.job_id).state.is_final:
            raise _JobEndedError

    def _two_submits(self) -> JobConflictError:
        return JobConflictError(f"another submit of job {self.job.job_id} is running")

    def _require_stopped(self) -> None:
        """The job takes no more items. If it came to grief, its status says why; else somebody ended it."""
        status = self.ledger.status(self.job.job_id)
        if status.state is not JobState.FAILED and not status.has_stopped_itself:
            raise JobConflictError(f"job {self.job.job_id} takes no more items: it is {status.state}")

    def _hint(self, chunks: int) -> None:
        count = min(chunks, MAX_HINTS - self.hinted)
        if count > 0:
            self.hints.publish_work(count)
            self.hinted += count


class _JobEndedError(Exception):
    """Somebody, or something, has ended the job that is being submitted."""


@contextmanager
def naming_the_way_out() -> Iterator[None]:
    """Around the first calls of an output: say what to do where it cannot be used."""
    try:
        yield
    except OutputUnreachableError as error:
        raise OutputUnreachableError(
            f"{error}: choose another --output, or make this one writable"
        ) from error


def _peeked(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same batches; reads the first, so that an unusable source fails before anything was made for it."""
    first = next(batches, None)
    return batches if first is None else chain([first], batches)


MAX_BYTES_IN_REDIS = 1 << 30  # of items: only images that come with their source are so large
_LOOK_AHEAD_SECONDS = 1.0
_LOOK_AHEAD_BYTES = 64 << 20


def within_redis(
    batches: Iterator[pa.RecordBatch],
    *,
    look_ahead: bool,
    max_items: int = MAX_ITEMS_IN_REDIS,
    max_bytes: int = MAX_BYTES_IN_REDIS,
    monotonic: Callable[[], float] = time.monotonic,
) -> Iterator[pa.RecordBatch]:
    """The same batches, as long as they are not too many.

    Args:
        batches: of a source.
        look_ahead: read for up to a second at once, which is to the end of most sources that are too long:
            so they are refused before anything was made of them. Not for one that may keep us waiting.
        max_items: the most items.
        max_bytes: the most bytes of all batches.
        monotonic: a clock in seconds.

    Raises:
        TooManyItemsError: at once, or while iterating.
    """
    bounded = _bounded(batches, max_items, max_bytes)
    if not look_ahead:
        return bounded
    held: list[pa.RecordBatch] = []
    ends = monotonic() + _LOOK_AHEAD_SECONDS
    for batch in bounded:
        held.append(batch)
        if monotonic() >= ends or sum(one.nbytes for one in held) >= _LOOK_AHEAD_BYTES:
            break
    return chain(held, bounded)


def _bounded(batches: Iterator[pa.RecordBatch], max_items: int, max_bytes: int) -> Iterator[pa.RecordBatch]:
    items = size = 0
    for batch in batches:
        items += batch.num_rows
        size += batch.nbytes
        if items > max_items:
            raise TooManyItemsError(_message(f"more than {max_items:,} items"))
        if size > max_bytes:
            raise TooManyItemsError(_message(f"more than {max_bytes >> 20:,} MiB of items"))
        yield batch


def _message(what: str) -> str:
    return (
        f"the source has {what}, the most that Redis keeps of one job: "
        "give an --output, the path of a folder or s3://BUCKET/PREFIX"
    )


_MODULUS = 1 << 128
_hash = partial(blake2b, digest_size=16)
_JOINED_BYTES = 1 << 30  # the text of a batch must stay below 2 GiB
_SEPARATOR, _NULL = "\x1f", "\x1e"
_MISSING = "-"  # a file that cannot be looked at: it becomes a failed row, and no reason to refuse the others


class Contents:
    """Counts and adds up the items that pass through `counted`; the sum changes with any of them.

    Their order does not matter. It adds one hash per item, over all of its columns and over what shows that
    its file or object was replaced: size and time of change of a local file, else what the source itself says
    (`parts.VERSION_COLUMN`). Images that come with the items are hashed; no other image is read.
    """

    def __init__(self) -> None:
        self.items = 0  # that have passed
        self._sum = 0

    @property
    def sum(self) -> str:
        """32 hexadecimal digits."""
        return f"{self._sum:032x}"

    def counted(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The batches of a source as they are staged: without `VERSION_COLUMN`."""
        for batch in batches:
            self.items += batch.num_rows
            self._sum = (self._sum + _hash_sum(batch)) % _MODULUS
            yield batch.drop_columns([VERSION_COLUMN]) if VERSION_COLUMN in batch.schema.names else batch


def _hash_sum(batch: pa.RecordBatch) -> int:
    if batch.nbytes > _JOINED_BYTES and batch.num_rows > 1:
        half = batch.num_rows // 2
        return _hash_sum(batch.slice(0, half)) + _hash_sum(batch.slice(half))
    texts = pc.binary_join_element_wise(
        *_columns(batch), _SEPARATOR, null_handling="replace", null_replacement=_NULL
    )
    hashes = map(_hash, texts.cast(pa.binary()).to_pylist())
    return sum(map(int.from_bytes, [one.digest() for one in hashes]))


def _columns(batch: pa.RecordBatch) -> Iterator[pa.Array]:
    """What is hashed, as strings.

    Nested columns are left out: their text costs many times the rest, and only a Parquet file has them, whose
    size and time of change stand in the job's fingerprint.
    """
    for name, values in zip(batch.schema.names, batch.columns, strict=True):
        if name == INLINE_COLUMN:
            yield pa.array(
                [None if one is None else _hash(one).hexdigest() for one in values.to_pylist()], pa.string()
            )
        elif pa.types.is_string(values.type):
            yield values
        elif name != "item_index" and not pa.types.is_nested(values.type):
            yield pc.cast(values, pa.string())
    states = _file_states(batch["uri"])
    if states is not None:
        yield states


def _file_states(uris: pa.Array) -> pa.Array | None:
    """Size and time of change of the local files among the items; None where there are none."""
    is_local = pc.or_(pc.starts_with(uris, "/"), pc.starts_with(uris, "file:", ignore_case=True))
    if not pc.any(is_local, min_count=0).as_py():
        return None
    pairs = zip(uris.to_pylist(), is_local.to_pylist(), strict=True)
    return pa.array([_file_state(uri) if is_file else None for uri, is_file in pairs], pa.string())


def _file_state(uri: str) -> str:
    try:
        state = os.stat(local_path(uri))  # noqa: PTH116 - a Path costs more than the look
    except (OSError, ValueError):
        return _MISSING
    return f"{state.st_size} {state.st_mtime_ns}"
