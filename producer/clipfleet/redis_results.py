"""Reads the rows of a `redis://` job back. A few hundred rows are held at a time.

Works while the job still runs: the rows of the chunks that are complete are read.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime

import pyarrow as pa

from clipfleet.contract import REDIS_OUTPUT, Job, JobState
from clipfleet.errors import (
    OutputDamagedError,
    OutputUnavailableError,
    ResultsExpiredError,
    ResultsNotReadyError,
)
from clipfleet.json_rows import from_json
from clipfleet.ledger import JobStatus, Ledger
from clipfleet.parts import PART_COLUMNS
from clipfleet.redis_store import RedisStore
from clipfleet.results import RowStream

_ROWS_PER_CALL = 500
_UNKNOWN_DIMENSION = 1  # of a job without a single vector, as in parts
_COMPLETE = (JobState.COMPLETED, JobState.COMPLETED_WITH_ERRORS)


class RedisRows:
    """See `clipfleet.results.RowReader`. Raises `RedisUnavailableError` while Redis is away."""

    def __init__(self, ledger: Ledger, store: RedisStore, job: Job) -> None:
        self._ledger = ledger
        self._store = store
        self._job = job

    @property
    def uri(self) -> str:
        """See the protocol."""
        return f"{REDIS_OUTPUT} (job {self._job.job_id})"

    def job(self) -> Job:
        """See the protocol."""
        return self._job

    def finished_at(self) -> datetime | None:
        """See the protocol."""
        status = self._ledger.status(self._job.job_id)
        if status.state not in _COMPLETE or status.finished_ms is None:
            return None
        return datetime.fromtimestamp(status.finished_ms / 1000, UTC)

    def read(self, columns: Sequence[str] | None = None) -> RowStream:
        """See the protocol.

        Raises:
            ResultsExpiredError: at once, or `OutputUnavailableError` while iterating: the time is over for
                which the rows were kept.
        """
        job_id = self._job.job_id
        status = self._ledger.status(job_id)
        stored = self._store.schema(job_id)
        if stored is None or not self._store.has_rows(job_id):
            raise _why_there_are_none(status)
        dimension = self._store.dimension(job_id) or _UNKNOWN_DIMENSION
        schema = with_embedding(stored, dimension)
        if columns is not None:
            schema = pa.schema([schema.field(name) for name in columns])
        return RowStream(schema, self._batches(status, schema))

    def rows_at(self, first_index: int, count: int) -> pa.Table | None:
        """The rows that are there among `count` items from `first_index` on; None if there are none."""
        job_id = self._job.job_id
        stored = self._store.schema(job_id)
        if stored is None:
            return None
        schema = with_embedding(stored, self._store.dimension(job_id) or _UNKNOWN_DIMENSION)
        rows = pa.Table.from_batches(self._read(range(first_index, first_index + count), schema), schema)
        return rows if rows.num_rows else None

    def failure_examples(self, codes: Collection[str]) -> dict[str, str]:
        """One detail for each of these error codes; reads no further than the last of them."""
        examples: dict[str, str] = {}
        for batch in self.read(["error_code", "error_detail"]).batches:
            for row in batch.to_pylist():
                if row["error_code"] is not None:
                    examples.setdefault(row["error_code"], row["error_detail"])
            if len(examples) >= len(codes):
                break
        return examples

    def _batches(self, status: JobStatus, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        count = 0
        for batch in self._read(range(status.total), schema):
            count += batch.num_rows
            yield batch
        if count < status.ok + status.failed:  # there were as many when we began
            raise OutputUnavailableError(f"{self.uri}: rows were removed while they were read")

    def _read(self, indexes: range, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        wants_vectors = "embedding" in schema.names
        for start in range(indexes.start, indexes.stop, _ROWS_PER_CALL):
            some = range(start, min(start + _ROWS_PER_CALL, indexes.stop))
            found = {
                index: text
                for index, text in zip(some, self._store.rows(self._job.job_id, some), strict=True)
                if text is not None
            }
            if found:
                vectors = self._store.vectors(self._job.job_id, list(found)) if wants_vectors else ()
                yield self._batch(list(found.values()), vectors, schema)

    def _batch(
        self, texts: Sequence[bytes], vectors: Sequence[bytes | None], schema: pa.Schema
    ) -> pa.RecordBatch:
        try:
            rows = from_json([json.loads(text) for text in texts], schema)
            if not vectors:
                return rows
            position = schema.get_field_index("embedding")
            field = schema.field(position)
            return rows.set_column(position, field, _embeddings(vectors, field.type))
        except (ValueError, pa.ArrowException) as error:
            raise OutputDamagedError(f"{self.uri}: damaged: {error}") from error


def with_embedding(schema: pa.Schema, dimension: int) -> pa.Schema:
    """The schema of stored rows with the column for their vectors, where parts have it."""
    kind = pa.list_(pa.float16(), dimension)
    return schema.insert(PART_COLUMNS.index("embedding"), pa.field("embedding", kind))


def _embeddings(vectors: Sequence[bytes | None], kind: pa.DataType) -> pa.Array:
    nothing = bytes(2 * kind.list_size)
    data = b"".join(nothing if vector is None else vector for vector in vectors)
    count = len(vectors) * kind.list_size
    if len(data) != 2 * count:
        raise ValueError("vectors differ in length")
    values = pa.Array.from_buffers(pa.float16(), count, [None, pa.py_buffer(data)])
    missing = pa.array([vector is None for vector in vectors])
    return pa.FixedSizeListArray.from_arrays(values, type=kind, mask=missing)


def _why_there_are_none(status: JobStatus) -> ResultsNotReadyError | ResultsExpiredError:
    if status.ok + status.failed == 0:
        return ResultsNotReadyError(f"job {status.job_id}: no results yet, it is {status.state}")
    return ResultsExpiredError(
        f"the rows of job {status.job_id} are gone: Redis keeps them for CLIPFLEET_RESULT_TTL_SECONDS after "
        "the end of a job; give an --output where they should stay"
    )
