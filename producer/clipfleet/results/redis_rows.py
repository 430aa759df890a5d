"""Reads the rows of a `redis://` job back. A few hundred rows are held at a time.

Works while the job still runs: the rows of the chunks that are complete are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import pyarrow as pa

from clipfleet.contract.jobs import REDIS_OUTPUT, Job, JobState
from clipfleet.contract.parts import UNKNOWN_DIMENSION, PartCounts, PartIdentity, count_rows
from clipfleet.errors import (
    OutputDamagedError,
    OutputUnavailableError,
    ResultsExpiredError,
    ResultsNotReadyError,
)
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import JobStatus, Ledger
from clipfleet.ledger.row_store import RedisStore
from clipfleet.ledger.status import EarlyEnd
from clipfleet.parts.json_rows import from_json
from clipfleet.results.rows import RowStream

_ROWS_PER_CALL = 500
_COMPLETE = (JobState.COMPLETED, JobState.COMPLETED_WITH_ERRORS)


class RedisRows:
    """See `clipfleet.results.rows.RowReader`. Raises `RedisUnavailableError` while Redis is down."""

    def __init__(self, ledger: Ledger, store: RedisStore, job: Job) -> None:
        self._ledger = ledger
        self._store = store
        self._job = job
        self.uri = f"{REDIS_OUTPUT} (job {job.job_id})"

    def job(self) -> Job:
        return self._job

    def label_sets(self) -> None:
        """None: Redis has the job only."""

    def finished_at(self) -> datetime | None:
        status = self._ledger.status(self._job.job_id)
        if status.state not in _COMPLETE or status.finished_ms is None:
            return None
        return datetime.fromtimestamp(status.finished_ms / 1000, UTC)

    def early_end(self) -> EarlyEnd | None:
        return self._ledger.status(self._job.job_id).early_end

    def read(self, columns: Sequence[str] | None = None) -> RowStream:
        """Read the rows so far.

        Raises:
            ResultsExpiredError: at once: the rows have expired; `OutputUnavailableError`: while iterating.
        """
        job_id = self._job.job_id
        status = self._ledger.status(job_id)
        schema = _schema(self._store, job_id, columns)
        if schema is None or not self._store.has_rows(job_id):
            raise _why_there_are_none(status)
        return RowStream(schema, self._batches(status, schema))

    def row_at(self, index: int) -> pa.RecordBatch | None:
        rows = rows_at(self._store, self._job.job_id, range(index, index + 1))
        if rows is not None:
            return rows.combine_chunks().to_batches()[0]
        if not self._store.has_rows(self._job.job_id):
            raise _why_there_are_none(self._ledger.status(self._job.job_id))
        return None

    def parts_in_place(self, chunks: int) -> Iterator[tuple[PartIdentity, PartCounts]]:
        """Identity and counts of each complete chunk below the given number.

        Raises:
            ResultsExpiredError: the rows have expired.
        """
        job, status = self._job, self._ledger.status(self._job.job_id)
        if status.ok + status.failed and not self._store.has_rows(job.job_id):
            raise _why_there_are_none(status)
        for chunk_id, indexes in self._store.chunks(job.job_id).items():
            rows = rows_at(self._store, job.job_id, indexes, ["error_code"])
            if chunk_id < chunks and rows is not None:
                yield PartIdentity(job.job_id, chunk_id, status.generation), count_rows(rows)

    def failure_examples(self) -> dict[str, str]:
        """Read until there is an example of every code that the ledger has counted."""
        codes = self._ledger.status(self._job.job_id).codes
        examples: dict[str, str] = {}
        if not codes:
            return examples
        for batch in self.read(["error_code", "error_detail"]).batches:
            for row in batch.to_pylist():
                if row["error_code"] is not None:
                    examples.setdefault(row["error_code"], row["error_detail"])
            if len(examples) >= len(codes):
                break
        return examples

    def _batches(self, status: JobStatus, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        count = 0
        for batch in _read(self._store, self._job.job_id, range(status.total), schema):
            count += batch.num_rows
            yield batch
        if count < status.ok + status.failed:  # as many existed at the start
            raise OutputUnavailableError(f"{self.uri}: rows were removed while they were read")


def rows_at(
    store: RedisStore, job_id: str, indexes: range, columns: Sequence[str] | None = None
) -> pa.Table | None:
    """Read the existing rows of some items, with all columns or the named ones; None if there are none."""
    schema = _schema(store, job_id, columns)
    if schema is None:
        return None
    rows = pa.Table.from_batches(_read(store, job_id, indexes, schema), schema)
    return rows if rows.num_rows else None


def _schema(store: RedisStore, job_id: str, columns: Sequence[str] | None) -> pa.Schema | None:
    """Schema of a job's rows with their vectors; None if there are no rows yet."""
    stored = store.schema(job_id)
    if stored is None:
        return None
    kind = pa.list_(pa.float16(), store.dimension(job_id) or UNKNOWN_DIMENSION)
    schema = stored.insert(stored.get_field_index("width"), pa.field("embedding", kind))
    return schema if columns is None else pa.schema([schema.field(name) for name in columns])


def _read(store: RedisStore, job_id: str, indexes: range, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for start in range(indexes.start, indexes.stop, _ROWS_PER_CALL):
        some = range(start, min(start + _ROWS_PER_CALL, indexes.stop))
        texts = zip(some, store.values(job_id, keys.ROWS, some), strict=True)
        found = {index: text for index, text in texts if text is not None}
        if not found:
            continue
        try:
            batch = from_json([json.loads(text) for text in found.values()], schema)
            if "embedding" in schema.names:
                batch = _with_vectors(batch, store.values(job_id, keys.VECTORS, list(found)))
        except (ValueError, pa.ArrowException) as error:
            where = f"{REDIS_OUTPUT}: rows {some.start} to {some.stop - 1} of job {job_id}"
            raise OutputDamagedError(f"{where} are damaged: {error}") from error
        yield batch


def _with_vectors(batch: pa.RecordBatch, vectors: Sequence[bytes | None]) -> pa.RecordBatch:
    position = batch.schema.get_field_index("embedding")
    field = batch.schema.field(position)
    length = field.type.list_size
    nothing = bytes(2 * length)
    data = b"".join(nothing if vector is None else vector for vector in vectors)
    if len(data) != 2 * length * len(vectors):
        raise ValueError("vectors differ in length")
    values = pa.Array.from_buffers(pa.float16(), length * len(vectors), [None, pa.py_buffer(data)])
    missing = pa.array([vector is None for vector in vectors])
    column = pa.FixedSizeListArray.from_arrays(values, type=field.type, mask=missing)
    return batch.set_column(position, field, column)


def _why_there_are_none(status: JobStatus) -> ResultsNotReadyError | ResultsExpiredError:
    if status.ok + status.failed == 0:
        return ResultsNotReadyError(f"job {status.job_id}: no results yet, it is {status.state}")
    return ResultsExpiredError(
        f"the rows of job {status.job_id} have expired: Redis keeps them for CLIPFLEET_RESULT_TTL_SECONDS "
        "after a job ends; give an `output=` to keep them"
    )
