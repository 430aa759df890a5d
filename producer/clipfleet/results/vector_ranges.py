"""Reads the rows and embeddings of an earlier job in ranges of whole parts, for jobs that label them again.

One kind for parts in a folder or in S3, one for Redis; `store_ranges` has one for stores. Knows no model;
labels of the earlier job are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.jobs import MAX_CHUNK_SIZE, REDIS_OUTPUT, Job, StoredVectors
from clipfleet.contract.parts import ITEM_COLUMNS, ItemStatus, PartRange
from clipfleet.errors import (
    OutputConflictError,
    OutputDamagedError,
    OutputUnavailableError,
    OutputUnreachableError,
    ResultsExpiredError,
)
from clipfleet.ledger.row_store import RedisStore
from clipfleet.outputs import Output
from clipfleet.outputs.job_file import job_of
from clipfleet.parts import OpenPart, PartFiles, parts_of, read_ahead
from clipfleet.results.part_rows import PartRows
from clipfleet.results.redis_rows import rows_at
from clipfleet.s3.client import SCHEME

# Of each row that is read; then the source's own columns, then `embedding`.
KEPT_COLUMNS = (
    *ITEM_COLUMNS, "status", "error_code", "error_detail", "width", "height", "content_hash",
    "model_fingerprint",
)  # fmt: skip
VECTORS_COLUMN = "embedding"
_REDIS_ROWS = 256  # of a part in Redis, where no parts are stored
_NUMBER_BYTES = 32  # of a number of a vector in JSON
_ROW_BYTES = 64 << 10  # of the other columns of a row
_PART_BYTES = 64 << 20
_MOST_PARTS = 256  # in a range: each one costs a few round trips to S3, however few rows it has

Alive = Callable[[], object]


class VectorRanges(Protocol):
    """The rows of one finished job, with their embeddings. Thread-safe."""

    uri: str  # for messages

    def ranges(self, most_rows: int) -> Iterator[PartRange]:
        """All rows in order, in ranges of whole parts with up to so many rows; of a larger part alone.

        A range has at most 256 parts. Raises like `RowReader.read`.
        """

    def require_all(self) -> None:
        """Raise what `read` or `ranges` would raise now, unless all rows are there; reads none of them."""

    def read(
        self, part_range: PartRange, *, with_vectors: bool = True, alive: Alive = lambda: None
    ) -> pa.Table:
        """Read the rows of a range, in order: never more than `most_rows`, whatever is stored.

        Columns: `KEPT_COLUMNS`, the source's own columns, and `embedding` (float16 or float32, as it is
        stored, of the length that the job names; null in failed rows).

        Args:
            part_range: as it was staged.
            with_vectors: else `embedding` is left out, and not touched.
            alive: called after each part; what it raises ends the read.

        Raises:
            OutputConflictError: the job has lost its output, or its id, to another one, or vectors differ in
                length.
            ResultsExpiredError: the rows in Redis have expired.
            OutputUnavailableError: a part is not readable now; `OutputUnreachableError`: the output is
                missing, or the range is not what it was when it was submitted.
        """


class PartRanges:
    """See `VectorRanges`; of the parts in a folder or in S3. A part is the result file of one chunk."""

    def __init__(
        self,
        output: Output,
        vectors: StoredVectors,
        extra_columns: Sequence[str],
        most_rows: int = MAX_CHUNK_SIZE,
    ) -> None:
        """Nothing is read yet.

        Args:
            output: of the earlier job.
            vectors: as the new job names them.
            extra_columns: of the source of either job.
            most_rows: of a range that is read.
        """
        self.uri = output.uri
        self._output = output
        self._vectors = vectors
        self._columns = [*KEPT_COLUMNS, *extra_columns]
        self._most_rows = most_rows

    def ranges(self, most_rows: int) -> Iterator[PartRange]:
        return grouped(PartRows(self._output).rows_of_parts(), most_rows)

    def require_all(self) -> None:
        self._read_job()
        PartRows(self._output).rows_of_parts()

    def read(
        self, part_range: PartRange, *, with_vectors: bool = True, alive: Alive = lambda: None
    ) -> pa.Table:
        require_bounded(part_range, self._most_rows, self.uri)
        files = parts_of(self._read_job())  # each time: another job may have the output by now
        first, tables, left = part_range.first_part, [], part_range.rows
        read = partial(self._part, files, part_range.rows, with_vectors=with_vectors)
        # From a folder one by one: other chunks are read meanwhile, and threads cost more than they hide.
        depth = files.readers if self.uri.startswith(SCHEME) else 1
        for rows in read_ahead(read, range(first, first + part_range.parts), depth=depth):
            alive()
            tables.append(rows)
            left -= rows.num_rows
            if left < 0:
                raise _changed(part_range, self.uri)
        rows = pa.concat_tables([tables[0], *(one.cast(tables[0].schema) for one in tables[1:])])
        return checked(rows, part_range, self.uri)

    def _read_job(self) -> Job:
        job = job_of(self._output)
        if job is None:
            raise OutputUnreachableError(
                f"{self.uri}: the output with the vectors is missing; is the folder mounted on this machine?"
            )
        _require_same(job, self._vectors, self.uri)
        return job

    def _part(self, files: PartFiles, most_rows: int, number: int, *, with_vectors: bool) -> pa.Table:
        name, dimension = files.name(number), self._vectors.dimension
        where = f"{self.uri}/{name}"
        try:
            with files.open(self._output, name, most_bytes=_most_bytes(most_rows, dimension)) as part:
                self._require_ours(part, number, where)
                if not with_vectors:
                    return _rows_of(part, self._columns, most_rows, where)
                if _length_of(part.schema) == dimension:
                    return _rows_of(part, [*self._columns, VECTORS_COLUMN], most_rows, where)
                rows = _rows_of(part, self._columns, most_rows, where)
                return _without_vectors(rows, part.schema, dimension, where)
        except FileNotFoundError as error:
            self._read_job()  # is it another's output by now?
            raise OutputUnavailableError(f"{where}: is not there (any more)") from error
        except KeyError as error:
            raise OutputDamagedError(f"{where}: has no column {error}") from error
        except OutputDamagedError as error:
            job_id, problem = self._vectors.job_id, str(error).removeprefix(f"{where}: ")
            raise OutputDamagedError(
                f"{where} is damaged: remove it, run `clipfleet retry {job_id}`, which makes it again, then "
                f"retry this job ({problem})"  # the way out first: reasons are cut
            ) from error

    def _require_ours(self, part: OpenPart, number: int, where: str) -> None:
        try:
            identity, _ = part.footer()
        except ValueError as error:
            raise OutputDamagedError(f"{where} is not a part: {error}") from error
        identity.require(self._vectors.job_id, number, where)


class RedisRanges:
    """See `VectorRanges`; of the rows of a job in Redis: a part is a slice of 256 items."""

    def __init__(
        self,
        store: RedisStore,
        vectors: StoredVectors,
        extra_columns: Sequence[str],
        most_rows: int = MAX_CHUNK_SIZE,
        *,
        items: int = 0,
    ) -> None:
        """See `PartRanges`; `items` is the number of rows, which `ranges` needs."""
        self.uri = f"{REDIS_OUTPUT} (job {vectors.job_id})"
        self._store = store
        self._vectors = vectors
        self._columns = [*KEPT_COLUMNS, *extra_columns]
        self._most_rows = most_rows
        self._items = items

    def ranges(self, most_rows: int) -> Iterator[PartRange]:
        starts = range(0, self._items, _REDIS_ROWS)
        return grouped([min(_REDIS_ROWS, self._items - start) for start in starts], most_rows)

    def require_all(self) -> None:
        self._require_job()
        if not self._store.has_rows(self._vectors.job_id):
            raise self._expired()

    def _require_job(self) -> None:
        job = self._store.job(self._vectors.job_id)
        if job is not None:
            _require_same(job, self._vectors, self.uri)

    def read(
        self, part_range: PartRange, *, with_vectors: bool = True, alive: Alive = lambda: None
    ) -> pa.Table:
        require_bounded(part_range, self._most_rows, self.uri)
        self._require_job()
        first = part_range.first_part * _REDIS_ROWS
        indexes = range(first, first + part_range.rows)
        columns = [*self._columns, VECTORS_COLUMN] if with_vectors else self._columns
        try:
            rows = rows_at(self._store, self._vectors.job_id, indexes, columns)
        except KeyError as error:
            raise OutputDamagedError(f"{self.uri}: has no column {error}") from error
        if rows is None:
            raise self._expired()
        alive()
        rows = rows.combine_chunks()
        if with_vectors and _length_of(rows.schema) != self._vectors.dimension:
            schema, rows = rows.schema, rows.drop_columns([VECTORS_COLUMN])
            rows = _without_vectors(rows, schema, self._vectors.dimension, self.uri)
        return checked(rows, part_range, self.uri)

    def _expired(self) -> ResultsExpiredError:
        return ResultsExpiredError(f"{self.uri}: the rows with the vectors have expired")


def grouped(rows: Sequence[int], most_rows: int) -> Iterator[PartRange]:
    """Group parts with so many rows each; parts without any are in no range, or between others."""
    index = first = end = held = 0
    for number, count in enumerate(rows):
        if not count:
            continue
        if held and (held + count > most_rows or number + 1 - first > _MOST_PARTS):
            yield PartRange(index, first, end - first, held)
            index, held = index + held, 0
        if not held:
            first = number
        held, end = held + count, number + 1
    if held:
        yield PartRange(index, first, end - first, held)


def _require_same(job: Job, vectors: StoredVectors, uri: str) -> None:
    """Raise unless a job is the one that made the vectors: another one may have its id."""
    if (job.job_id, job.created_at) != (vectors.job_id, vectors.created_at):
        other = "another job of the same id" if job.job_id == vectors.job_id else f"job {job.job_id}"
        raise OutputConflictError(
            f"{uri} holds {other} by now, not {vectors.job_id} of {vectors.created_at:%Y-%m-%d %H:%M:%S}, "
            "whose vectors are to be labelled"
        )


def require_bounded(
    part_range: PartRange, most_rows: int, uri: str, *, may_have_empty_parts: bool = False
) -> None:
    """Raise unless it is a range that a submit stages: another program may have written it."""
    most_parts = _MOST_PARTS if may_have_empty_parts else min(part_range.rows, _MOST_PARTS)
    if not (
        1 <= part_range.rows <= most_rows
        and 1 <= part_range.parts <= most_parts
        and min(part_range.item_index, part_range.first_part) >= 0
    ):
        raise OutputDamagedError(f"{uri}: {part_range} is no range of parts of a chunk")


def _rows_of(part: OpenPart, columns: Sequence[str], most_rows: int, where: str) -> pa.Table:
    """The rows of a part, unless it has more than so many; else none or few of them are read."""
    batches, rows = [], part.num_rows
    if rows <= most_rows:
        rows = 0
        for batch in part.batches(columns):
            batches.append(batch)
            rows += batch.num_rows
            if rows > most_rows:
                break
    if rows > most_rows:
        raise OutputDamagedError(f"{where}: has {rows:,} rows, more than when the job was submitted")
    return pa.Table.from_batches(batches, pa.schema([part.schema.field(one) for one in columns]))


def _most_bytes(rows: int, dimension: int) -> int:
    """Of a part as JSON Lines that has so many rows, which is read as a whole."""
    return rows * (dimension * _NUMBER_BYTES + _ROW_BYTES) + _PART_BYTES


def _length_of(schema: pa.Schema) -> int | None:
    """Length of the vectors; None: there is no column of them."""
    position = schema.get_field_index(VECTORS_COLUMN)
    kind = pa.null() if position < 0 else schema.field(position).type
    return kind.list_size if pa.types.is_fixed_size_list(kind) else None


def _without_vectors(rows: pa.Table, schema: pa.Schema, dimension: int, where: str) -> pa.Table:
    """The rows of a part whose vectors have another length: all have failed, so that it has no vector.

    Raises:
        OutputConflictError: a row is ok.
        KeyError: the part has no column of vectors.
    """
    field = schema.field(VECTORS_COLUMN)
    if not pa.types.is_fixed_size_list(field.type):
        raise OutputDamagedError(f"{where}: has vectors of type {field.type}")
    if pc.any(pc.equal(rows["status"], ItemStatus.OK.value)).as_py():
        raise OutputConflictError(
            f"{where}: vectors of length {field.type.list_size} instead of {dimension}: from another model?"
        )
    kind = pa.list_(field.type.value_type, dimension)
    return rows.append_column(field.with_type(kind), pa.nulls(len(rows), kind))


def checked(rows: pa.Table, part_range: PartRange, uri: str) -> pa.Table:
    """The rows, if they are those of the range: one of each item, in order.

    Raises:
        OutputDamagedError: they are not.
    """
    first, count = part_range.item_index, part_range.rows
    found = rows["item_index"]
    expected = pa.arange(first, first + count)
    if len(rows) != count or not pc.all(pc.equal(found, expected)).as_py():
        raise _changed(part_range, uri)
    return rows


def _changed(part_range: PartRange, uri: str) -> OutputDamagedError:
    first, last = part_range.item_index, part_range.item_index + part_range.rows - 1
    return OutputDamagedError(
        f"{uri}: the rows of items {first} to {last} are not there as they were when the job was submitted"
    )
