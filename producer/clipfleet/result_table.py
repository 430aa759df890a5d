"""The rows of a job as a table for people: what was asked, what was answered, what went wrong. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from clipfleet.contract import Job
from clipfleet.parts import label_columns
from clipfleet.printable import printable

_TEXT_CHARACTERS = 200
_FOLDED_WIDTH = 12  # wider cells are folded before a label set is left out
_BETWEEN = 3  # columns of the terminal


@dataclass(frozen=True, slots=True)
class _Column:
    heading: str
    cells: Sequence[str]
    is_number: bool = False

    @property
    def shown(self) -> Sequence[str]:
        """The cells as a terminal may have them."""
        return [printable(cell) for cell in self.cells]

    @property
    def width(self) -> int:
        widest = max(map(cell_len, self.shown), default=0)
        return max(cell_len(self.heading), min(widest, _FOLDED_WIDTH)) + _BETWEEN


def result_table(rows: Sequence[dict[str, Any]], job: Job | None, width: int) -> tuple[Table, Sequence[str]]:
    """The rows as a table, and the names of the label sets that have no place in it.

    Args:
        rows: objects of JSON's own types.
        job: tells which of the columns are label sets and texts; None if it is not known.
        width: of the terminal. There is always a place for one label set.
    """
    before = [_Column("index", [str(row["item_index"]) for row in rows], is_number=True)]
    before += [*_names(rows, job), _Column("status", [row["status"] for row in rows])]
    after = [_Column("error", [_error(row) for row in rows])]
    answers, left_out = _answers(rows), []
    if job is not None and job.named_label_sets:
        sets = [_label_set(label_set.name, rows) for label_set in job.named_label_sets]
        room = width - 1 - sum(column.width for column in (*before, *after))
        fitting = [sum(column.width for column in sets[: count + 1]) <= room for count in range(len(sets))]
        shown = max(1, sum(fitting))
        answers, left_out = sets[:shown], [column.heading for column in sets[shown:]]
    columns = [*before, *answers, *after]
    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(
            Text(printable(column.heading)), overflow="fold", justify="right" if column.is_number else "left"
        )
    for cells in zip(*(column.shown for column in columns), strict=True):
        table.add_row(*map(Text, cells))
    return table, left_out


def _names(rows: Sequence[dict[str, Any]], job: Job | None) -> list[_Column]:
    """The ids, and the texts; where no text has an id but its index, that is said already."""
    ids = _Column("id", [row["item_id"] for row in rows])
    if job is None or job.text_column is None:
        return [ids]
    texts = _Column(job.text_column, [_shortened(row.get(job.text_column)) for row in rows])
    has_ids = any(row["item_id"] != str(row["item_index"]) for row in rows)
    return [ids, texts] if has_ids else [texts]


def _shortened(text: str | None) -> str:
    line = " ".join((text or "").split())
    return line if len(line) <= _TEXT_CHARACTERS else f"{line[: _TEXT_CHARACTERS - 1]}\u2026"


def _answers(rows: Sequence[dict[str, Any]]) -> list[_Column]:
    vectors = ["" if row["embedding"] is None else f"{len(row['embedding'])} numbers" for row in rows]
    has_labels = any(row["label"] is not None for row in rows)
    answers = [row["label"] or vector for row, vector in zip(rows, vectors, strict=True)]
    scores = [_score(row["score"]) for row in rows]
    return [
        _Column("label" if has_labels else "vector", answers),
        _Column("score", scores, is_number=True),
    ]


def _label_set(name: str, rows: Sequence[dict[str, Any]]) -> _Column:
    label, score, *_ = label_columns(name)
    return _Column(name, [f"{row.get(label) or ''} {_score(row.get(score))}".strip() for row in rows])


def _score(score: float | None) -> str:
    return "" if score is None else f"{score:.3f}"


def _error(row: dict[str, Any]) -> str:
    return ": ".join(part for part in (row["error_code"], row["error_detail"]) if part)
