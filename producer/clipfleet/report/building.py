"""Makes the data of a report: what is to be marked first, then one pass over the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pyarrow as pa

from clipfleet.contract.columns import DECISION_COLUMNS
from clipfleet.contract.jobs import Job
from clipfleet.contract.label_sets import LabelSet
from clipfleet.errors import UsageError
from clipfleet.labels.sets import read_label_set
from clipfleet.marking.matching import MatchedMarks, match_stored_marks, read_matched_marks
from clipfleet.marking.stored import stored_marks
from clipfleet.report.answers import Answers, answers_of, slices
from clipfleet.report.drawing import Drawing, drawn_for
from clipfleet.report.failures import Failures
from clipfleet.report.moved import Moves, moves_between
from clipfleet.report.rows import PageRows
from clipfleet.report.samples import KeptRows, Smallest, uniform_keys
from clipfleet.report.tallies import Decisions, Tally
from clipfleet.report.truth import truth_of
from clipfleet.results.rows import RowReader

MOST_ROWS = 20_000  # that the page lists; of more, a uniform sample
_MOST_SHEETS = 12_000  # items in the sheets of all labels of a set
_LEAST_PER_LABEL = 4
_SLICE_ROWS = 8192

Thumbnails = Callable[[Sequence[int]], Iterator[tuple[int, bytes]]]  # item_index and JPEG, of those there are


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a user wants in the report."""

    set_name: str | None = None  # that marks, truth and `labels_file` are about; None: the only one
    labels_file: str | None = None  # label set with other thresholds than the rows'
    marks: Sequence[Path] = ()
    labels: Sequence[str] = ()  # to mark; none: all
    truth_column: str | None = None
    per_label: int = 24  # items in the sheet of a label
    to_mark: int = 60  # items of a fit sample
    compared: RowReader | None = None  # another output of the same items


@dataclass(frozen=True, slots=True)
class Report:
    """All that a page shows, but its images."""

    reader: RowReader
    job: Job | None
    finished_at: datetime | None
    tallies: Sequence[Tally]
    failures: Failures
    decisions: Decisions | None
    moves: Moves | None
    page_rows: PageRows
    listed: Sequence[int]  # `item_index` of the rows that the page lists, by a uniform key
    rows: int
    ok: int
    focus: int | None  # number of the label set that marks are about
    marked: MatchedMarks | None
    drawing: Drawing
    fingerprint: str | None
    notes: Sequence[str] = field(default=())


def make_report(reader: RowReader, wanted: Wanted) -> Report:
    """Read an output, or what it has so far.

    Raises:
        UsageError: an option does not fit the output. Otherwise see `RowReader.read`.
    """
    finished_at, job = reader.finished_at(), reader.job()  # asked first: it may finish meanwhile
    schema = reader.read().schema
    given = None if wanted.labels_file is None else read_label_set(wanted.labels_file)
    answers = answers_of(reader, job, schema, given)
    focus = _focus(reader, answers, wanted)
    marked = _marked(reader, answers, focus, wanted)
    drawing = drawn_for(
        reader,
        None if focus is None else answers[focus],
        marked,
        wanted.labels,
        wanted.to_mark,
        labels_file=wanted.labels_file,
        is_finished=finished_at is not None,
        is_asked=bool(wanted.labels or wanted.labels_file or wanted.marks),
    )
    moves = None if wanted.compared is None else moves_between(reader, wanted.compared)
    if moves is not None:
        moves.count()
    truth = None
    if wanted.truth_column is not None and focus is not None:
        truth = truth_of(reader, answers[focus], wanted.truth_column)
    tallies = [
        Tally(one, _per_label(one, wanted), truth if number == focus else None)
        for number, one in enumerate(answers)
    ]
    has_decisions = DECISION_COLUMNS[0] in schema.names
    decisions = Decisions(DECISION_COLUMNS[0], wanted.per_label) if has_decisions else None
    always = {*drawing.indexes, *_marked_indexes(marked), *(moves.shown() if moves else ())}
    passed = _Pass(tallies, decisions, always)
    passed.read(reader, schema)
    return Report(
        reader=reader, job=job, finished_at=finished_at, tallies=tallies, failures=passed.failures,
        decisions=decisions, moves=moves, page_rows=PageRows(passed.kept.batches(), answers),
        listed=[index for index, _ in passed.listed.of(0)], rows=passed.rows, ok=passed.ok, focus=focus,
        marked=marked, drawing=drawing, fingerprint=passed.fingerprint,
        notes=() if finished_at else ("The job has not finished: rows may be missing.",),
    )  # fmt: skip


class _Pass:
    """One pass over the rows."""

    def __init__(self, tallies: Sequence[Tally], decisions: Decisions | None, always: set[int]) -> None:
        self._tallies, self._decisions = tallies, decisions
        self.failures = Failures()
        self.listed = Smallest(MOST_ROWS)
        more = () if decisions is None else (decisions.examples,)
        samples = [
            self.listed,
            self.failures.examples,
            *more,
            *(one for tally in tallies for one in tally.samples),
        ]
        self.kept = KeptRows(samples, always)
        self.rows = self.ok = 0
        self.fingerprint: str | None = None

    def read(self, reader: RowReader, schema: pa.Schema) -> None:
        """Read all rows without their vectors."""
        names = [
            one.name
            for one in schema
            if not pa.types.is_fixed_size_list(one.type) and one.name != "embedding"
        ]
        for batch in slices(reader.read(names).batches, _SLICE_ROWS):
            self._add(batch)

    def _add(self, batch: pa.RecordBatch) -> None:
        failed = self.failures.codes.total()
        indexes = batch["item_index"]
        taken = {*self.failures.add(batch)}
        zeros = pa.array([0] * batch.num_rows, pa.int32())
        nothing = pa.nulls(batch.num_rows, pa.float64())
        taken.update(self.listed.add(zeros, uniform_keys(indexes), indexes, nothing))
        for tally in self._tallies:
            taken.update(tally.add(batch))
        if self._decisions is not None:
            taken.update(self._decisions.add(batch))
        self.kept.add(batch, taken)
        self.rows += batch.num_rows
        self.ok += batch.num_rows - (self.failures.codes.total() - failed)
        if self.fingerprint is None:
            self.fingerprint = next((one for one in batch["model_fingerprint"].to_pylist() if one), None)


def _focus(reader: RowReader, answers: Sequence[Answers], wanted: Wanted) -> int | None:
    """The label set that marks, truth and `labels_file` are about."""
    sets = [number for number, one in enumerate(answers) if one.label_set is not None]
    names = ", ".join(answers[number].name for number in sets)
    is_needed = wanted.marks or wanted.truth_column or wanted.labels_file or wanted.labels
    if wanted.set_name is not None:
        found = [number for number in sets if answers[number].name == wanted.set_name]
        if not found:
            raise UsageError(
                f"{reader.uri}: its job has no label set {wanted.set_name!r}; it has {names or 'none'}"
            )
        return found[0]
    if is_needed and len(sets) != 1:
        if not sets:
            raise UsageError(
                f"{reader.uri}: its rows have no label set, so marks and truth say nothing about them"
            )
        raise UsageError(f"{reader.uri}: its job has several label sets: choose one with `set=`: {names}")
    return next((number for number in sets if answers[number].thresholds), next(iter(sets), None))


def _marked(
    reader: RowReader, answers: Sequence[Answers], focus: int | None, wanted: Wanted
) -> MatchedMarks | None:
    """The marks of files; without files, those that are stored beside the rows."""
    if focus is None:
        return None
    label_set: LabelSet = answers[focus].label_set or LabelSet(labels=answers[focus].numbers.names)
    if not wanted.marks:
        stored = stored_marks(reader)
        return match_stored_marks(reader, label_set, stored) if stored else None
    where = wanted.labels_file or reader.uri
    return read_matched_marks(reader, label_set, where, wanted.marks, list(label_set.promises))


def _marked_indexes(marked: MatchedMarks | None) -> set[int]:
    items = [] if marked is None else marked.items.values()
    return {item.item_index for some in items for item in some}


def _per_label(answers: Answers, wanted: Wanted) -> int:
    most = _MOST_SHEETS // max(1, len(answers.numbers.names))
    return min(wanted.per_label, max(_LEAST_PER_LABEL, most))
