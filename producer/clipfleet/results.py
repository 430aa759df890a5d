"""Reads the rows of a job back from its parts, and exports them. Reads only, and only one batch at a time.

Works while a job still runs: what is there is read.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clipfleet import keys
from clipfleet.errors import (
    OutputConflictError,
    OutputUnavailableError,
    ResultsNotReadyError,
    UsageError,
)
from clipfleet.outputs import Output
from clipfleet.outputs.parquet import footer, open_parquet, parquet_errors

if TYPE_CHECKING:
    import numpy as np

TABLE_ROWS = 20
_BATCH_ROWS = 4096
_EXAMPLE_BYTES = 1 << 20
_EXPORT_ROWS = 32_768  # rows of a row group of an exported file; 32 MB of vectors of length 512


class ResultFormat(StrEnum):
    """What `clipfleet results` can write."""

    TABLE = "table"
    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


def read_parts(output: Output) -> Iterator[pa.RecordBatch]:
    """All rows so far, in the order of the parts' names (which is the order of the source), in one schema.

    Parts may differ in the length of `embedding` where it is all null (a part that was given up before the
    model was known); they get the length of the others.

    Raises:
        ResultsNotReadyError: at once, where no part exists.
        OutputConflictError: while iterating, where parts hold vectors of different lengths.
        OutputUnavailableError: while iterating, where a part cannot be read; `OutputUnreachableError`: it is
            damaged.
    """
    names = _part_names(output)
    return _batches(output, names, _common_schema(output, names))


def rows(output: Output) -> Iterator[dict[str, Any]]:
    """All rows so far as plain dicts; `embedding` is a list of floats or None. Raises like `read_parts`."""
    return (row for batch in read_parts(output) for row in _plain(batch))


def failure_examples(output: Output) -> dict[str, str]:
    """One detail for each error code, as far as the beginning of the job's list of failed rows goes."""
    try:
        with output.open(keys.ERRORS) as file:
            lines = file.read(_EXAMPLE_BYTES).decode(errors="replace").splitlines(keepends=True)
    except (FileNotFoundError, OutputUnavailableError):
        return {}
    failed = [json.loads(line) for line in lines if line.endswith("\n")]
    return {row["error_code"]: row["error_detail"] for row in reversed(failed)}


def vectors(output: Output) -> tuple[np.ndarray, np.ndarray]:
    """All vectors so far, in memory: `item_index` (n, int64) and the vectors (n, dimension; float16).

    Rows without a vector are left out, so n may be smaller than the number of items; it is 0, like the
    dimension, for a job that made none.

    Raises:
        UsageError: numpy is not installed. Else see `read_parts`.
    """
    try:
        import numpy as np
    except ImportError:
        raise UsageError("vectors need numpy: pip install numpy") from None
    indexes, values = bytearray(), bytearray()  # they grow in place: no second copy of everything at the end
    dimension = 0
    for batch in read_parts(output):
        present = batch.filter(pc.is_valid(batch.column("embedding")))
        dimension = _dimension(present, dimension)
        indexes += present.column("item_index").to_numpy().tobytes()
        values += present.column("embedding").flatten().to_numpy().tobytes()
    matrix = (
        np.frombuffer(values, np.float16).reshape(-1, dimension)
        if dimension
        else np.empty((0, 0), np.float16)
    )
    return np.frombuffer(indexes, np.int64), matrix


def write(output: Output, result_format: ResultFormat, stream: BinaryIO, *, limit: int | None = None) -> int:
    """Export the rows so far.

    Args:
        output: the job's output.
        result_format: `table` is for people; the others hold every column.
        stream: text is written to it as UTF-8. It is left open, and need not be seekable.
        limit: the most rows that are written; None means all, 20 for a table.

    Returns:
        Number of rows written.

    Raises:
        ResultsNotReadyError: no part exists; nothing was written. Else see `read_parts`.
    """
    if limit is None:
        limit = TABLE_ROWS if result_format is ResultFormat.TABLE else sys.maxsize
    names = _part_names(output)
    schema = _common_schema(output, names)
    return _WRITERS[result_format](_Rows(schema, _batches(output, names, schema), limit), stream)


# --- Reading ------------------------------------------------------------------------------------------------


def _part_names(output: Output) -> list[str]:
    prefix, suffix = keys.PART_GLOB.split("*")
    names = [name for name in output.names(prefix) if name.endswith(suffix)]
    if not names:
        hint = "" if output.read(keys.JOB_FILE) is not None else "; no job has this output"
        raise ResultsNotReadyError(f"{output.uri}: no results yet{hint}")
    return names


def _common_schema(output: Output, names: list[str]) -> pa.Schema:
    """Schema of the first part with an ok row: a part without one may not know the length of a vector."""
    first: pa.Schema | None = None
    for name in names:
        with _opened(output, name) as file:
            schema = file.schema_arrow.remove_metadata()
            if int(footer(file).get("ok", 0)) > 0:
                return schema
            first = first or schema
    return first


def _batches(output: Output, names: list[str], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for name in names:
        with _opened(output, name) as file:
            for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
                yield _conformed(batch, schema, name)


@contextmanager
def _opened(output: Output, name: str) -> Iterator[pq.ParquetFile]:
    with parquet_errors(output, name):
        try:
            file = open_parquet(output, name)
        except FileNotFoundError as error:
            raise OutputUnavailableError(f"{output.uri}/{name}: was removed while it was read") from error
        try:
            yield file
        finally:
            file.close(force=True)


def _conformed(batch: pa.RecordBatch, schema: pa.Schema, name: str) -> pa.RecordBatch:
    if batch.schema.equals(schema):
        return batch
    return pa.RecordBatch.from_arrays([_column(batch, field, name) for field in schema], schema=schema)


def _column(batch: pa.RecordBatch, field: pa.Field[Any], name: str) -> pa.Array:
    if field.name not in batch.schema.names:
        return pa.nulls(batch.num_rows, field.type)
    column = batch.column(field.name)
    if column.type.equals(field.type):
        return column
    if column.null_count == len(column):
        return pa.nulls(batch.num_rows, field.type)
    try:
        return column.cast(field.type)
    except pa.ArrowException:
        raise OutputConflictError(
            f"{name}: column {field.name} is {column.type}, in other parts {field.type}: another model?"
        ) from None


def _dimension(present: pa.RecordBatch, before: int) -> int:
    """The one length of these vectors and the ones before (0: there were none)."""
    lengths = pc.unique(pc.list_value_length(present.column("embedding"))).to_pylist()
    if len({before, *lengths} - {0}) > 1:
        first = present.column("item_index")[0].as_py()
        raise OutputConflictError(
            f"vectors from item {first} on have another length than those before: made with another model?"
        )
    return lengths[0] if lengths else before


def _plain(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    # As float32 first: older pyarrow hands out float16 as numpy scalars, which need numpy and are no JSON.
    position = batch.schema.get_field_index("embedding")
    kind = batch.schema.types[position]
    is_fixed = pa.types.is_fixed_size_list(kind)
    wide = pa.list_(pa.float32(), kind.list_size) if is_fixed else pa.list_(pa.float32())
    rows: list[dict[str, Any]] = batch.set_column(
        position, "embedding", batch.column(position).cast(wide)
    ).to_pylist()
    return rows


# --- Writing ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Rows:
    """What is to be written; can be read once."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]
    limit: int  # the most rows that are written

    def first(self, limit: int | None = None) -> Iterator[pa.RecordBatch]:
        """The rows up to the limit; no part is opened that is not needed for them."""
        left = self.limit if limit is None else limit
        while left > 0 and (batch := next(self.batches, None)) is not None:
            yield batch.slice(0, left)
            left -= batch.num_rows


def _write_jsonl(wanted: _Rows, stream: BinaryIO) -> int:
    count = 0
    with _as_text(stream) as text:
        for batch in wanted.first():
            text.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in _plain(batch))
            count += batch.num_rows
    return count


def _write_csv(wanted: _Rows, stream: BinaryIO) -> int:
    count = 0
    with _as_text(stream) as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(wanted.schema.names)
        for batch in wanted.first():
            writer.writerows([_csv_value(value) for value in row.values()] for row in _plain(batch))
            count += batch.num_rows
    return count


def _csv_value(value: object) -> object:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value


def _write_parquet(wanted: _Rows, stream: BinaryIO) -> int:
    count = 0
    held: list[pa.RecordBatch] = []
    with pq.ParquetWriter(stream, wanted.schema, compression="zstd") as writer:
        for batch in wanted.first():
            held.append(batch)
            count += batch.num_rows
            if sum(one.num_rows for one in held) >= _EXPORT_ROWS:
                writer.write_table(pa.Table.from_batches(held))
                held = []
        if held:
            writer.write_table(pa.Table.from_batches(held))
    return count


def _write_table(wanted: _Rows, stream: BinaryIO) -> int:
    # One row more than is shown tells whether there are more.
    rows = [row for batch in wanted.first(wanted.limit + 1) for row in _plain(batch)]
    shown = rows[: wanted.limit]
    answer = "label" if any(row["label"] is not None for row in shown) else "vector"
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("index", "id", "status", answer, "score", "error"):
        is_number = heading in ("index", "score")
        table.add_column(heading, overflow="fold", justify="right" if is_number else "left")
    for row in shown:
        table.add_row(*(Text(cell) for cell in _cells(row)))
    with _as_text(stream) as text:
        console = Console(file=text)
        console.print(table)
        if len(rows) > len(shown):
            console.print(
                f"the first {len(shown)} rows; more with --limit, all with --format jsonl, csv or parquet"
            )
    return len(shown)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    vector = row["embedding"]
    error = ": ".join(part for part in (row["error_code"], row["error_detail"]) if part)
    return (
        str(row["item_index"]),
        row["item_id"],
        row["status"],
        row["label"] or ("" if vector is None else f"{len(vector)} numbers"),
        "" if row["score"] is None else f"{row['score']:.3f}",
        error,
    )


@contextmanager
def _as_text(stream: BinaryIO) -> Iterator[TextIO]:
    text = io.TextIOWrapper(stream, "utf-8", newline="")
    try:
        yield text
    finally:
        text.detach()  # else the wrapper would close the caller's stream


_WRITERS: dict[ResultFormat, Callable[[_Rows, BinaryIO], int]] = {
    ResultFormat.TABLE: _write_table,
    ResultFormat.JSONL: _write_jsonl,
    ResultFormat.CSV: _write_csv,
    ResultFormat.PARQUET: _write_parquet,
}
