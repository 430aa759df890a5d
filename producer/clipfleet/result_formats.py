"""Writes rows that were read back for people and for other programs; one batch at a time."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import BinaryIO, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape

from clipfleet.contract import Job
from clipfleet.json_rows import json_dicts, json_lines
from clipfleet.result_table import result_table
from clipfleet.results import RowReader

TABLE_ROWS = 20
_GROUP_ROWS = 32_768  # 32 MB of vectors of length 512


class ResultFormat(StrEnum):
    """What `clipfleet results` can write."""

    TABLE = "table"
    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


def write(
    reader: RowReader, result_format: ResultFormat, stream: BinaryIO, *, limit: int | None = None
) -> int:
    """Write the rows so far.

    Args:
        reader: the rows of a job.
        result_format: `table` is for people; the others hold every column.
        stream: text is written to it as UTF-8. It is left open, and need not be seekable.
        limit: the most rows that are written; None means all, 20 for a table.

    Returns:
        Number of rows written.

    Raises:
        ResultsNotReadyError: no part exists; nothing was written. Else see `RowReader.read`.
    """
    if limit is None:
        limit = TABLE_ROWS if result_format is ResultFormat.TABLE else sys.maxsize
    stored = reader.read()
    return _WRITERS[result_format](_Rows(stored.schema, stored.batches, limit, reader.job), stream)


@dataclass(frozen=True, slots=True)
class _Rows:
    """What is to be written; can be read once."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]
    limit: int  # the most rows that are written
    job: Callable[[], Job | None]

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
            text.writelines(json_lines(batch))
            count += batch.num_rows
    return count


def _write_csv(wanted: _Rows, stream: BinaryIO) -> int:
    count = 0
    with _as_text(stream) as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(wanted.schema.names)
        for batch in wanted.first():
            writer.writerows(map(_csv_value, row.values()) for row in json_dicts(batch))
            count += batch.num_rows
    return count


def _csv_value(value: object) -> object:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _write_parquet(wanted: _Rows, stream: BinaryIO) -> int:
    count = 0
    with pq.ParquetWriter(stream, wanted.schema, compression="zstd") as writer:
        for group in row_groups(wanted.first()):
            writer.write_table(group)
            count += group.num_rows
    return count


def row_groups(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Batches, which may be small, gathered to tables that are worth a row group each."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(one.num_rows for one in held) >= _GROUP_ROWS:
            yield pa.Table.from_batches(held)
            held = []
    if held:
        yield pa.Table.from_batches(held)


def _write_table(wanted: _Rows, stream: BinaryIO) -> int:
    # One row more than is shown tells whether there are more.
    rows = [row for batch in wanted.first(wanted.limit + 1) for row in json_dicts(batch)]
    shown = rows[: wanted.limit]
    with _as_text(stream) as text:
        console = Console(file=text)
        table, left_out = result_table(shown, wanted.job(), console.width)
        console.print(table)
        if left_out:
            names = escape(", ".join(left_out))
            console.print(
                f"no room for {names}: widen the terminal, or all with --format jsonl, csv or parquet"
            )
        if len(rows) > len(shown):
            console.print(
                f"the first {len(shown)} rows; more with --limit, all with --format jsonl, csv or parquet"
            )
    return len(shown)


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
