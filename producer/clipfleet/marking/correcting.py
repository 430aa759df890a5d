"""Rows with what people marked in place of what the model says. Reads only: the output stays as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.columns import ACCEPTED_COLUMN, LABEL_COLUMNS, accepted_column, label_columns
from clipfleet.contract.jobs import Job
from clipfleet.contract.label_sets import LabelKind, LabelSet
from clipfleet.contract.parts import ItemStatus, extra_column_name
from clipfleet.labels.marks import Mark, MarkVerdict
from clipfleet.ledger.status import EarlyEnd
from clipfleet.marking.stored import marks_place, stored_marks
from clipfleet.results.rows import RowReader, RowStream
from clipfleet.wording import counted

CORRECTED = "corrected"
_OF_A_CLASH = "corrected_by_marks"  # where the source has a column of that name
_FACTS = ("item_index", "item_id", "content_hash", "status")


@dataclass(slots=True)
class Corrections:
    """Marked rows of the last pass over labels."""

    marked: int = 0  # rows
    changed: int = 0  # of these, rows whose labels the model had not


@dataclass(frozen=True, slots=True)
class _Answer:
    """The columns of a label set."""

    label_set: LabelSet
    columns: tuple[str, ...]  # in the order of `LABEL_COLUMNS`
    accepted: str | None
    chooser: str | None  # the column by which each row names its set

    def changes(self, row: Mapping[str, Any], verdicts: dict[str, bool]) -> dict[str, Any]:
        """The columns of a row by the verdicts on its labels, of which the latest is last.

        `labels` and `scores` remain those of the model.
        """
        label, score, labels, scores = (row[name] for name in self.columns)
        by_label = dict(zip(labels or (), scores or (), strict=False))
        said = row[self.accepted] if self.accepted else None
        said = said if said is not None else [] if label is None else [label]
        shown = [one for one in reversed(verdicts) if verdicts[one]]
        kept = [one for one in said if verdicts.get(one, True) and one not in shown]
        if self.label_set.kind is LabelKind.MULTI:
            shown = sorted([*shown, *kept], key=lambda one: -by_label.get(one, 0.0))
        elif not shown:  # of a single set a label that is shown excludes all others
            shown = kept
        best = next(iter(shown), None)
        found: dict[str, Any] = {self.columns[0]: best}
        found[self.columns[1]] = score if best in (label, None) else by_label.get(best)
        if self.accepted and row[self.accepted] is not None:
            found[self.accepted] = shown
        return found


def corrected_rows(reader: RowReader) -> CorrectedRows:
    """The rows with the marks that are stored beside them, if there are any.

    Raises:
        UsageError: see `marks_place` and `stored_marks`.
    """
    marks_place(reader)
    return CorrectedRows(reader, stored_marks(reader))


def with_stored_marks(reader: RowReader) -> CorrectedRows | None:
    """The rows with the marks that are stored beside them; None: there are none.

    Raises:
        UsageError: see `stored_marks`.
    """
    marks = stored_marks(reader)
    return CorrectedRows(reader, marks) if marks else None


class CorrectedRows:
    """See `clipfleet.results.rows.RowReader`. `corrected` says what the marks did to a row.

    It is true where a label is another one than that of the model, false where the marks agree, null where
    there is no mark. The latest mark of an item and a label counts, of all people's; a skip says nothing. A
    mark on another image or item than that of the row is void.
    """

    def __init__(self, reader: RowReader, marks: Sequence[Mark]) -> None:
        """`marks`: those of `stored_marks`, in this order."""
        self._reader = reader
        self._verdicts: dict[int, dict[tuple[str, str], Mark]] = {}
        for mark in marks:
            if mark.item_index is not None and mark.verdict is not MarkVerdict.SKIP:
                of_item = self._verdicts.setdefault(mark.item_index, {})
                of_item.pop((mark.label_set, mark.label), None)  # the latest comes last
                of_item[mark.label_set, mark.label] = mark
        self._marked = pa.array(self._verdicts, pa.int64())
        self.uri = reader.uri
        self.corrections = Corrections()

    @property
    def has_marks(self) -> bool:
        """Whether there is any mark that says something."""
        return bool(self._verdicts)

    def notes(self) -> tuple[str, ...]:
        """What the last pass over all labels has applied, for people."""
        marked, changed = self.corrections.marked, self.corrections.changed
        found = [f"{counted(marked, 'row')} with what people marked, of which {changed:,} had other labels"]
        if void := len(self._verdicts) - marked:
            found.append(f"void, for the image has changed or is gone: the marks on {counted(void, 'item')}")
        return tuple(found)

    def job(self) -> Job | None:
        return self._reader.job()

    def label_sets(self) -> Sequence[Mapping[str, Any]] | None:
        return self._reader.label_sets()

    def finished_at(self) -> datetime | None:
        return self._reader.finished_at()

    def early_end(self) -> EarlyEnd | None:
        return self._reader.early_end()

    def failure_examples(self) -> dict[str, str]:
        return self._reader.failure_examples()

    def read(self, columns: Sequence[str] | None = None) -> RowStream:
        schema = self._reader.read().schema
        answers = _answers(self._reader.job(), schema)
        name = _free_name(schema)
        wanted = [*schema.names, name] if columns is None else [*columns]
        ours = {one for answer in answers for one in (*answer.columns, answer.accepted)} | {name}
        if not ours.intersection(wanted):
            return self._reader.read(wanted)
        needed = [*_FACTS, *(one for answer in answers for one in _names(answer))]
        stored = self._reader.read([one for one in dict.fromkeys((*wanted, *needed)) if one != name])
        fields = [pa.field(name, pa.bool_()) if one == name else stored.schema.field(one) for one in wanted]
        batches = self._batches(stored.batches, answers, name)
        return RowStream(pa.schema(fields), (batch.select(wanted) for batch in batches))

    def row_at(self, index: int) -> pa.RecordBatch | None:
        row = self._reader.row_at(index)
        if row is None:
            return None
        answers = _answers(self._reader.job(), row.schema)
        return self._corrected(row, answers, _free_name(row.schema), Corrections())

    def _batches(
        self, batches: Iterator[pa.RecordBatch], answers: Sequence[_Answer], name: str
    ) -> Iterator[pa.RecordBatch]:
        self.corrections = Corrections()
        for batch in batches:
            yield self._corrected(batch, answers, name, self.corrections)

    def _corrected(
        self, batch: pa.RecordBatch, answers: Sequence[_Answer], name: str, counts: Corrections
    ) -> pa.RecordBatch:
        """The rows of a batch, and the column of this name behind."""
        indexes = batch["item_index"]
        places = pc.indices_nonzero(pc.is_in(indexes, value_set=self._marked.cast(indexes.type))).to_pylist()
        needed = [*_FACTS, *dict.fromkeys(one for answer in answers for one in _names(answer))]
        rows = batch.select(needed).take(pa.array(places, pa.int64())).to_pylist() if places else []
        flags: list[bool | None] = [None] * batch.num_rows
        changes: dict[str, dict[int, Any]] = {}
        for place, row in zip(places, rows, strict=True):
            found = self._changes(row, answers)
            if found is None:
                continue
            flags[place] = bool(found)
            counts.marked += 1
            counts.changed += bool(found)
            for column, value in found.items():
                changes.setdefault(column, {})[place] = value
        for column, values in changes.items():
            position = batch.schema.get_field_index(column)
            batch = batch.set_column(
                position, batch.schema.field(position), _replaced(batch.column(position), values)
            )
        return batch.append_column(name, pa.array(flags, pa.bool_()))

    def _changes(self, row: Mapping[str, Any], answers: Sequence[_Answer]) -> dict[str, Any] | None:
        """What changes in a row; None: it has no mark that holds."""
        verdicts: dict[str, dict[str, bool]] = {}
        for (set_name, label), mark in self._verdicts[row["item_index"]].items():
            if _holds(mark, row):
                verdicts.setdefault(set_name, {})[label] = mark.verdict is MarkVerdict.YES
        fitting = [
            answer
            for answer in answers
            if answer.label_set.name in verdicts
            and (answer.chooser is None or str(row[answer.chooser]).strip() == answer.label_set.name)
        ]
        if not fitting:
            return None
        found: dict[str, Any] = {}
        for answer in fitting:
            found |= answer.changes(row, verdicts[answer.label_set.name])
        return {column: value for column, value in found.items() if value != row[column]}


def _holds(mark: Mark, row: Mapping[str, Any]) -> bool:
    if row["status"] != ItemStatus.OK or (mark.item_id and mark.item_id != row["item_id"]):
        return False
    return not (mark.content_hash and row["content_hash"]) or mark.content_hash == row["content_hash"]


def _names(answer: _Answer) -> list[str]:
    return [*answer.columns, *(one for one in (answer.accepted, answer.chooser) if one is not None)]


def _answers(job: Job | None, schema: pa.Schema) -> list[_Answer]:
    """The columns of each label set of a job; those without a name are of the first, or of the row's own."""
    if job is None:
        return []
    chooser = None if job.label_set_column is None else extra_column_name(job.label_set_column)
    found: list[tuple[LabelSet, tuple[str, ...], str]] = []
    for label_set in job.label_sets:
        if chooser is not None or label_set is job.label_sets[0]:
            found.append((label_set, LABEL_COLUMNS, ACCEPTED_COLUMN))
        if label_set in job.named_label_sets:
            found.append((label_set, label_columns(label_set.name), accepted_column(label_set.name)))
    return [
        _Answer(label_set, columns, accepted if accepted in job.accepted_columns else None, chooser)
        for label_set, columns, accepted in found
        if {*columns} <= {*schema.names}
    ]


def _free_name(schema: pa.Schema) -> str:
    """The name of our column; the source may have one that is called so."""
    return CORRECTED if CORRECTED not in schema.names else _OF_A_CLASH


def is_of_marks(column: str, job: Job | None) -> bool:
    """Whether a column of rows is the one that says what the marks did, and not one of the source."""
    of_source = job.source.extra_columns if job is not None else ()
    return column == (CORRECTED if CORRECTED not in of_source else _OF_A_CLASH)


def _replaced(column: pa.Array, values: Mapping[int, Any]) -> pa.Array:
    """A column with other values at some places."""
    both = pa.concat_arrays([column, pa.array(values.values(), column.type)])
    numbers = {place: len(column) + number for number, place in enumerate(values)}
    return both.take(pa.array([numbers.get(place, place) for place in range(len(column))], pa.int64()))
