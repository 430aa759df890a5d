"""What the label sets and heads of a job say about each row, in one form. Reads batches, keeps nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, log

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.columns import ACCEPTED_COLUMN, LABEL_COLUMNS, accepted_column, label_columns
from clipfleet.contract.heads import HeadKind, JobHead
from clipfleet.contract.jobs import Job
from clipfleet.contract.label_sets import LARGEST_SCORE, LabelKind, LabelSet
from clipfleet.contract.parts import ItemStatus, extra_column_name
from clipfleet.errors import UsageError
from clipfleet.results.label_sets import label_sets_of
from clipfleet.results.rows import RowReader


class LabelNumbers:
    """Numbers of labels: those of the set in its order, then others in the order of the rows."""

    def __init__(self, known: Sequence[str] = ()) -> None:
        self.names = list(dict.fromkeys(known))
        self._values = pa.array(self.names, pa.string())

    def of(self, labels: pa.Array) -> pa.Array:
        """The numbers of labels, int32; an unknown label gets the next number."""
        codes = pc.index_in(labels, value_set=self._values)
        if codes.null_count > labels.null_count:
            new = pc.unique(labels.filter(pc.and_(pc.is_null(codes), pc.is_valid(labels)))).to_pylist()
            self.names += new
            self._values = pa.array(self.names, pa.string())
            codes = pc.index_in(labels, value_set=self._values)
        return codes.cast(pa.int32())


@dataclass(frozen=True, slots=True)
class Answered:
    """What one label set or head says about the ok rows of a batch."""

    item_index: pa.Array  # (rows,) int64
    # One entry per row and label that has a score, best first in a row:
    entry_rows: pa.Array  # position of the row
    entry_labels: pa.Array  # number of the label
    entry_scores: pa.Array  # float64
    sizes: pa.Array  # (rows,) entries of each row
    # One entry per row and label that the row has: accepted, or the best one of a softmax:
    chosen_rows: pa.Array
    chosen_labels: pa.Array
    chosen_sizes: pa.Array  # (rows,)


@dataclass(frozen=True, slots=True)
class Answers:
    """The columns of one label set or head, and its labels."""

    name: str
    kind: str  # single, none, multi, or that of a head
    columns: Sequence[str | None]  # label, score, labels, scores, accepted
    numbers: LabelNumbers
    thresholds: Mapping[str, float] = field(default_factory=dict)  # by label; empty: a softmax
    label_set: LabelSet | None = None  # with the thresholds; None: a head, or a preset that is not stored
    rows_label_set: LabelSet | None = None  # whose scores the rows have, if the thresholds are of another one
    chooser: tuple[str, str] | None = None  # a column, and its value in the rows of this set

    @property
    def is_multi(self) -> bool:
        """Whether a row may have several labels."""
        return self.kind in (LabelKind.MULTI.value, HeadKind.MULTILABEL.value)

    @property
    def may_be_none(self) -> bool:
        """Whether a row may have no label."""
        return bool(self.thresholds)

    @property
    def read_columns(self) -> list[str]:
        """The columns that it reads."""
        return [name for name in (*self.columns, *(self.chooser or ())[:1]) if name is not None]

    def rows_of(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The ok rows of a batch that this set or head answers for."""
        batch = batch.filter(pc.equal(batch["status"], pa.scalar(ItemStatus.OK.value)))
        if self.chooser is not None:
            column, value = self.chooser
            batch = batch.filter(pc.equal(batch[column], pa.scalar(value)))
        return batch

    def of(self, batch: pa.RecordBatch) -> Answered:
        """Read rows of `rows_of`."""
        label, score, labels, scores, accepted = self.columns
        if labels is not None and scores is not None:
            sizes = pc.fill_null(pc.list_value_length(batch[labels]), 0)
            entries = batch[labels].flatten(), batch[scores].flatten().cast(pa.float64())
            rows = _parents(batch[labels])
        else:
            has = pc.and_(pc.is_valid(batch[label]), pc.is_valid(batch[score]))
            sizes = has.cast(pa.int32())
            entries = batch[label].filter(has), batch[score].filter(has).cast(pa.float64())
            rows = pa.array(range(batch.num_rows), pa.int64()).filter(has)
        codes, values = self.numbers.of(entries[0]), entries[1]
        if self.rows_label_set is not None and self.label_set is not None:
            values = recalibrated(values, codes, self.numbers.names, self.rows_label_set, self.label_set)
            taken = self._reached(codes, values)
            chosen_rows, chosen = rows.filter(taken), codes.filter(taken)
        elif accepted is not None:
            chosen_rows, chosen = _parents(batch[accepted]), self.numbers.of(batch[accepted].flatten())
        else:
            has = pc.is_valid(batch[label])
            chosen_rows = pa.array(range(batch.num_rows), pa.int64()).filter(has)
            chosen = self.numbers.of(batch[label].filter(has))
        return Answered(
            batch["item_index"], rows, codes, values, sizes, chosen_rows, chosen,
            _counts(chosen_rows, batch.num_rows),
        )  # fmt: skip

    def _reached(self, codes: pa.Array, scores: pa.Array) -> pa.Array:
        limits = pa.array([self.thresholds.get(name, 2.0) for name in self.numbers.names], pa.float64())
        return pc.greater_equal(scores, limits.take(codes))


def answers_of(
    reader: RowReader, job: Job | None, schema: pa.Schema, given: LabelSet | None = None
) -> list[Answers]:
    """The label sets and heads with labels, in the order of the job.

    Args:
        reader: of the rows.
        job: the job; None: unknown, so that only the columns of the first set are read.
        schema: of the rows.
        given: thresholds, and for a calibrated set another slope, for the set of this name, or the only one.

    Raises:
        UsageError: no label set is the one of `given`.
    """
    if job is None:
        return _without_job(schema)
    sets = _known_sets(reader, job)
    found = [_of_set(one, job, given if _is_meant(one, given, sets) else None) for one in sets]
    if given is not None and not any(one.label_set is given for one in found):
        raise UsageError(f"{reader.uri}: its job has no label set {given.name!r}")
    found += [_of_head(head) for head in job.heads if head.head.kind is not HeadKind.REGRESS]
    return [one for one in found if all(name in schema.names for name in one.read_columns)]


def recalibrated(
    scores: pa.Array, codes: pa.Array, names: Sequence[str], own: LabelSet, given: LabelSet
) -> pa.Array:
    """Scores as a set with another calibration of the same z computes them, see `LabelSet`."""

    def by_label(of: LabelSet, value: str) -> pa.Array:
        values = [(of.slope or 1.0) if value == "slope" else of.intercepts.get(name, 0.0) for name in names]
        return pa.array(values, pa.float64()).take(codes)

    if (own.slope or 1.0, own.intercepts) == (given.slope or 1.0, given.intercepts):
        return scores
    p = pc.max_element_wise(pc.min_element_wise(scores, LARGEST_SCORE), _SMALLEST)
    logit = pc.ln(pc.divide(p, pc.subtract(1.0, p)))
    z = pc.divide(pc.subtract(logit, by_label(own, "intercept")), by_label(own, "slope"))
    t = pc.add(pc.multiply(z, by_label(given, "slope")), by_label(given, "intercept"))
    found = pc.divide(1.0, pc.add(1.0, pc.exp(pc.negate(t))))
    return pc.min_element_wise(found, LARGEST_SCORE).cast(pa.float32()).cast(pa.float64())


_SMALLEST = 2.0**-126  # the smallest normal float32: a logit of 0 has no number


def logit(p: float) -> float:
    """Log odds of a probability, which is cut to the range of scores."""
    p = min(max(p, _SMALLEST), LARGEST_SCORE)
    return log(p / (1 - p))


def sigmoid(t: float) -> float:
    """Inverse of `logit`."""
    return 1 / (1 + exp(-t)) if t > -700 else 0.0


def _known_sets(reader: RowReader, job: Job) -> Sequence[LabelSet]:
    if not job.label_sets:
        return ()
    try:
        return label_sets_of(reader)
    except UsageError:  # labels of a preset are stored by the end of a job: the rows name those that occur
        return job.label_sets


def _is_meant(one: LabelSet, given: LabelSet | None, sets: Sequence[LabelSet]) -> bool:
    return given is not None and (len(sets) == 1 or one.name == given.name)


def _of_set(one: LabelSet, job: Job, given: LabelSet | None) -> Answers:
    is_named = one.name in {other.name for other in job.named_label_sets}
    columns = label_columns(one.name) if is_named else LABEL_COLUMNS
    accepted = accepted_column(one.name) if is_named else ACCEPTED_COLUMN
    used = given or one
    thresholds = {label: used.threshold(label) for label in used.labels} if used.has_thresholds else {}
    kind = "none" if one.none else one.kind.value
    return Answers(
        one.name, kind, (*columns, accepted if one.has_thresholds else None), LabelNumbers(one.labels),
        thresholds, used, one if given is not None else None,
        None if job.label_set_column is None else (extra_column_name(job.label_set_column), one.name),
    )  # fmt: skip


def _of_head(head: JobHead) -> Answers:
    label, score, *accepted = head.columns
    columns = (label, score, None, None, next(iter(accepted), None))
    found = {name: head.head.threshold(name) for name in head.head.labels}
    thresholds = {name: value for name, value in found.items() if value is not None}
    return Answers(head.name, head.head.kind.value, columns, LabelNumbers(head.head.labels), thresholds)


def _without_job(schema: pa.Schema) -> list[Answers]:
    if not {*LABEL_COLUMNS} <= {*schema.names}:
        return []
    return [Answers("labels", LabelKind.SINGLE.value, (*LABEL_COLUMNS, None), LabelNumbers())]


def _parents(lists: pa.Array) -> pa.Array:
    return pc.list_parent_indices(lists).cast(pa.int64())


def _counts(rows: pa.Array, length: int) -> pa.Array:
    """How often each position from 0 to length - 1 occurs."""
    counts = [0] * length
    for entry in pc.value_counts(rows).to_pylist():
        counts[entry["values"]] = entry["counts"]
    return pa.array(counts, pa.int32())


def slices(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Cut large batches, so that what is computed of one stays small."""
    for batch in batches:
        for start in range(0, batch.num_rows, rows):
            yield batch.slice(start, rows)
