"""Writes rows as a table, JSON Lines, CSV or Parquet, one batch at a time."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from clipfleet.contract.columns import ACCEPTED_COLUMN, LABEL_COLUMNS, accepted_column, label_columns
from clipfleet.contract.heads import HeadKind, JobHead
from clipfleet.contract.jobs import Job
from clipfleet.contract.label_sets import LabelKind, LabelSet
from clipfleet.parts.json_rows import json_dicts, json_lines
from clipfleet.results.kinds import ResultFormat
from clipfleet.results.rows import RowReader, RowStream
from clipfleet.results.selection import EVERYTHING, Selection
from clipfleet.terminal.console import printable
from clipfleet.terminal.decisions import reasons_words

TABLE_ROWS = 20
_GROUP_ROWS = 32_768  # 32 MB of vectors of length 512
_GROUP_BYTES = 1 << 27  # of images


def write(
    reader: RowReader,
    result_format: ResultFormat,
    stream: BinaryIO,
    *,
    limit: int | None = None,
    selection: Selection = EVERYTHING,
) -> int:
    """Write the selected rows so far, at most `limit` (None: all, 20 for a table); return their number.

    A table omits columns unless they are chosen, the other formats have all; in a pipe each row is
    one line. Text is UTF-8. The stream is left open and need not be seekable.

    Raises:
        ResultsNotReadyError: there are no rows; nothing was written. Otherwise see `Selection.read`.
    """
    if limit is None and result_format is ResultFormat.TABLE:
        limit = TABLE_ROWS
    # One more row than a table shows, to detect that there are more.
    stored = selection.read(reader, None if limit is None else limit + 1)
    limit = sys.maxsize if limit is None else limit
    rows = _Rows(stored.schema, stored.batches, limit, reader.job, selection.columns)
    _WRITERS[result_format](rows, stream)
    return min(rows.count, limit)


def write_stream(rows: RowStream, result_format: ResultFormat, stream: BinaryIO) -> None:
    """Write all rows of a stream, see `write`; not as a table."""
    _WRITERS[result_format](_Rows(rows.schema, rows.batches, sys.maxsize, lambda: None), stream)


@dataclass(slots=True)
class _Rows:
    """Rows to write; readable once."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]
    limit: int  # upper bound of rows to write
    job: Callable[[], Job | None]
    columns: Sequence[str] = ()  # that were chosen
    count: int = 0  # rows read so far

    def first(self, limit: int | None = None) -> Iterator[pa.RecordBatch]:
        """Iterate over the rows up to the limit, opening only the parts needed."""
        left = self.limit if limit is None else limit
        while left > 0 and (batch := next(self.batches, None)) is not None:
            batch = batch.slice(0, left)
            yield batch
            self.count += batch.num_rows
            left -= batch.num_rows


def _write_jsonl(wanted: _Rows, stream: BinaryIO) -> None:
    with _as_text(stream) as text:
        for batch in wanted.first():
            text.writelines(json_lines(batch))


def _write_csv(wanted: _Rows, stream: BinaryIO) -> None:
    with _as_text(stream) as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(wanted.schema.names)
        for batch in wanted.first():
            writer.writerows(map(_csv_value, row.values()) for row in json_dicts(batch))


def _csv_value(value: object) -> object:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _write_parquet(wanted: _Rows, stream: BinaryIO) -> None:
    with pq.ParquetWriter(stream, wanted.schema, compression="zstd") as writer:
        for group in row_groups(wanted.first()):
            writer.write_table(group)


def row_groups(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Combine small batches into tables of the size of a row group."""
    held: list[pa.RecordBatch] = []
    rows = size_bytes = 0
    for batch in batches:
        held.append(batch)
        rows, size_bytes = rows + batch.num_rows, size_bytes + batch.nbytes
        if rows >= _GROUP_ROWS or size_bytes >= _GROUP_BYTES:
            yield pa.Table.from_batches(held)
            held, rows, size_bytes = [], 0, 0
    if held:
        yield pa.Table.from_batches(held)


def _write_table(wanted: _Rows, stream: BinaryIO) -> None:
    rows = [row for batch in wanted.first(wanted.limit + 1) for row in json_dicts(batch)]
    shown = rows[: wanted.limit]
    with _as_text(stream) as text:
        console = Console(file=text, width=None if stream.isatty() else _UNWRAPPED)
        left_out: Sequence[str] = ()
        if wanted.columns:
            table = _plain_table(shown, wanted.columns)
        else:
            table, left_out = result_table(shown, wanted.job(), console.width)
        console.print(table)
        if left_out:
            names = escape(", ".join(left_out))
            console.print(f"not shown: {names}; widen the terminal, or use --format jsonl, csv or parquet")
        if len(rows) > len(shown):
            console.print(
                f"the first {len(shown)} shown; raise --limit, or use --format jsonl, csv or parquet"
            )


_UNWRAPPED = 1_000_000  # columns of a pipe: one line per row, for grep and its like
_TEXT_CHARACTERS = 200
_FOLDED_WIDTH = 12  # wider cells are folded before a label set is omitted
_ACCEPTED = 3  # labels of a row that are named
_BETWEEN = 3  # columns of the terminal


@dataclass(frozen=True, slots=True)
class _Column:
    heading: str
    cells: Sequence[str]
    is_number: bool = False

    @property
    def shown(self) -> Sequence[str]:
        """The cells with control characters escaped."""
        return [printable(cell) for cell in self.cells]

    @property
    def width(self) -> int:
        widest = max(map(cell_len, self.shown), default=0)
        return max(cell_len(self.heading), min(widest, _FOLDED_WIDTH)) + _BETWEEN


def result_table(rows: Sequence[dict[str, Any]], job: Job | None, width: int) -> tuple[Table, Sequence[str]]:
    """Lay out rows (of JSON types) as a table; also return the label sets and heads that do not fit.

    The job names the columns of label sets, heads and texts. At least one label set or head is shown.
    """
    before = [_Column("index", [str(row["item_index"]) for row in rows], is_number=True)]
    is_moderated = job is not None and job.policy is not None
    status = "decision" if is_moderated else "status"
    before += [*_names(rows, job), _Column(status, [row[status] for row in rows])]
    after = [_Column("error", [_error(row) for row in rows])]
    sets = [] if job is None else [_label_set(label_set, rows) for label_set in job.named_label_sets]
    heads = [] if job is None else [_head(head, rows) for head in job.heads]
    answers, more = [] if sets else _answers(rows, job), [*sets, *heads]
    if is_moderated:
        answers = [_Column("why", [_why(row) for row in rows])]
    room = width - 1 - sum(column.width for column in (*before, *answers, *after))
    fitting = [sum(column.width for column in more[: count + 1]) <= room for count in range(len(more))]
    shown = max(0 if answers else 1, sum(fitting))
    left_out = [column.heading for column in more[shown:]]
    return _table([*before, *answers, *more[:shown], *after]), left_out


def _plain_table(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> Table:
    return _table([_Column(name, [_plain_cell(row[name]) for row in rows]) for name in names])


def _plain_cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"  # as `show` writes it
    return "" if value is None else str(_csv_value(value))


def _table(columns: Sequence[_Column]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for column in columns:
        table.add_column(
            Text(printable(column.heading)), overflow="fold", justify="right" if column.is_number else "left"
        )
    for cells in zip(*(column.shown for column in columns), strict=True):
        table.add_row(*map(Text, cells))
    return table


def _names(rows: Sequence[dict[str, Any]], job: Job | None) -> list[_Column]:
    """Columns of ids and texts, without ids if they are all equal to the index."""
    ids = _Column("id", [row["item_id"] for row in rows])
    if job is None or job.text_column is None:
        return [ids]
    texts = _Column(job.text_column, [_shortened(row.get(job.text_column)) for row in rows])
    has_ids = any(row["item_id"] != str(row["item_index"]) for row in rows)
    return [ids, texts] if has_ids else [texts]


def _shortened(text: str | None) -> str:
    line = " ".join((text or "").split())
    return line if len(line) <= _TEXT_CHARACTERS else f"{line[: _TEXT_CHARACTERS - 1]}\u2026"


def _answers(rows: Sequence[dict[str, Any]], job: Job | None) -> list[_Column]:
    """The columns that every job has; none where they are empty because the job has only heads."""
    if job is not None and job.heads and not (job.label_sets or job.keeps_embeddings):
        return []
    lengths = [len(row.get("embedding") or ()) for row in rows]
    vectors = [f"{length} numbers" if length else "" for length in lengths]
    # All rows of a job may have failed; without its description only they can show what it is.
    has_labels = any(row["label"] is not None for row in rows) if job is None else bool(job.label_sets)
    accepts = job is not None and bool(job.accepted_columns)
    columns = (*LABEL_COLUMNS, ACCEPTED_COLUMN)
    labels = [
        _set_label(row, columns, is_multi=_is_multi(row, job)) if accepts else row["label"] for row in rows
    ]
    answers = [label or vector for label, vector in zip(labels, vectors, strict=True)]
    if not has_labels:
        return [_Column("vector", answers)]
    scores = [_score(row["score"]) for row in rows]
    return [_Column("label", answers), _Column("score", scores, is_number=True)]


def _is_multi(row: dict[str, Any], job: Job | None) -> bool:
    """Whether the columns without the name of a set are of a multi set."""
    if job is None or not job.label_sets:
        return False
    if job.label_set_column is None:
        return job.label_sets[0].kind is LabelKind.MULTI
    kinds = {one.name: one.kind for one in job.label_sets}
    return kinds.get(str(row.get(job.label_set_column)).strip()) is LabelKind.MULTI


def _label_set(label_set: LabelSet, rows: Sequence[dict[str, Any]]) -> _Column:
    columns = (*label_columns(label_set.name), accepted_column(label_set.name))
    labels = [_set_label(row, columns, is_multi=label_set.kind is LabelKind.MULTI) for row in rows]
    return _Column(label_set.name, _with_scores(labels, columns[1], rows))


def _head(head: JobHead, rows: Sequence[dict[str, Any]]) -> _Column:
    """Label and score; only the score of a number without a threshold, which has no label."""
    label, score, *accepted = head.columns
    may_be_none = head.head.kind is HeadKind.MULTILABEL or bool(head.head.thresholds)
    labels = [
        _label(
            row.get(label),
            row.get(accepted[0]) if accepted else None,
            is_none=may_be_none and row.get(label) is None and row.get(score) is not None,
        )
        for row in rows
    ]
    return _Column(label, _with_scores(labels, score, rows))


def _set_label(row: dict[str, Any], columns: Sequence[str], *, is_multi: bool) -> str:
    """The label of a single set, or the accepted ones of a multi set; if there are none, the best one."""
    label, _, labels, _, accepted = (row.get(column) for column in columns)
    is_none = accepted == [] and bool(labels)
    return _label(label, accepted if is_multi else None, is_none=is_none, best=labels[0] if labels else None)


def _label(
    label: str | None, accepted: Sequence[str] | None, *, is_none: bool, best: str | None = None
) -> str:
    """The label, or all accepted ones; where none is accepted, the best one if its name is known."""
    if accepted and len(accepted) > 1:
        return _enumerated(accepted)
    if is_none:
        return "none" if best is None else f"none (best: {best})"
    return label or ""


def _with_scores(labels: Sequence[str], column: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    return [f"{label} {_score(row.get(column))}".strip() for label, row in zip(labels, rows, strict=True)]


def _enumerated(labels: Sequence[str]) -> str:
    more = len(labels) - _ACCEPTED
    return ", ".join(labels[:_ACCEPTED]) + (f" and {more:,} more" if more > 0 else "")


def _score(score: float | None) -> str:
    return "" if score is None else f"{score:.3f}"


def _why(row: dict[str, Any]) -> str:
    return "" if row["error_code"] else reasons_words(row["decision_reasons"] or ())


def _error(row: dict[str, Any]) -> str:
    return ": ".join(part for part in (row["error_code"], row["error_detail"]) if part)


@contextmanager
def _as_text(stream: BinaryIO) -> Iterator[TextIO]:
    text = io.TextIOWrapper(stream, "utf-8", newline="")
    try:
        yield text
    finally:
        text.detach()  # or the wrapper closes the caller's stream


_WRITERS: dict[ResultFormat, Callable[[_Rows, BinaryIO], None]] = {
    ResultFormat.TABLE: _write_table,
    ResultFormat.JSONL: _write_jsonl,
    ResultFormat.CSV: _write_csv,
    ResultFormat.PARQUET: _write_parquet,
}
