"""Evaluation of the rows of a classify job against a column of its source. Runs nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clipfleet.contract.columns import ACCEPTED_COLUMN
from clipfleet.contract.jobs import Job
from clipfleet.contract.label_sets import LabelSet
from clipfleet.contract.parts import ItemStatus
from clipfleet.errors import UsageError
from clipfleet.evaluation.accepting import AcceptedRows, measure_accepted
from clipfleet.evaluation.measuring import class_groups, classification_measured
from clipfleet.evaluation.outcome import Evaluation, Measured
from clipfleet.evaluation.truth import Labels, items_hash, matrix_of, texts_of, truth_column
from clipfleet.evaluation.vectors import FailedItem
from clipfleet.labels.metrics import TOP_FIVE, Ranks
from clipfleet.results.rows import RowReader
from clipfleet.wording import counted

Array = np.ndarray


def evaluate_rows(reader: RowReader, column: str) -> Evaluation:
    """Compare the labels of rows with those that a column of the source has.

    The column holds a label or its index; of a set of kind `multi` a list of them, or names separated by `|`.
    A set that may have no label takes an empty value, or `none`, as that; of other sets, items with an empty
    value are left out. Of several label sets, the first.

    Raises:
        UsageError: no such column, a value that is no label, or rows that cannot be judged.
        ResultsNotReadyError: there are no rows.
    """
    job, label_set = _job_of(reader)
    stored = "Redis has none: give an `output=`" if job.output_is_redis else "the end of the job stores them"
    labels = Labels(
        texts_of(reader, label_set, stored)[0],
        has_none=label_set.none,
        is_multi=label_set.has_thresholds and not label_set.none,
    )
    read = _read(reader, truth_column(reader, column), labels, has_accepted=label_set.has_thresholds)
    if not read.ok_count:
        raise UsageError(f"{reader.uri}: none of {len(read.ok):,} rows has labels and a truth")
    notes = [] if reader.finished_at() is not None else ["the job has not finished: rows may be missing"]
    if read.unlabelled:
        notes.append(f"left out: {counted(read.unlabelled, 'item')} without a truth")
    if job.named_label_sets:
        notes.append(f"of {len(job.label_sets)} label sets, this is {label_set.name!r}")
    measure = (_softmax_measure if not label_set.has_thresholds else _accepted_measure)(
        read, job, labels, label_set.groups, notes
    )
    ok = np.array(read.ok, bool)
    return Evaluation(
        source=reader.uri, split=None, task="rows", dataset=reader.uri, model=job.model,
        precision=job.precision, decode=job.decode,
        model_fingerprint=read.fingerprint, outputs={"rows": reader.uri}, items_ok=ok, measure=measure,
        measured=measure(ok), failed=tuple(read.failed),
        truth_hash=items_hash(read.ids, read.values),
    )  # fmt: skip


def _job_of(reader: RowReader) -> tuple[Job, LabelSet]:
    job = reader.job()
    if job is None:
        raise UsageError(f"{reader.uri}: no job has this output, so its labels are not known")
    if not job.label_sets:
        raise UsageError(f"{reader.uri}: its rows have no labels: add `labels=`, to label its vectors now")
    if job.label_set_column is not None:
        raise UsageError(f"{reader.uri}: each item names a label set of its own: evaluate one set at a time")
    return job, job.label_sets[0]


@dataclass(slots=True)
class _Rows:
    """What is read of the rows; lists of ok rows are in step with each other."""

    fingerprint: str | None = None
    ids: list[str] = field(default_factory=list)  # of all rows
    values: list[Any] = field(default_factory=list)  # of the truth column, of all rows
    ok: list[bool] = field(default_factory=list)  # of all rows: whether it is judged
    unlabelled: int = 0  # rows that have no truth
    failed: list[FailedItem] = field(default_factory=list)
    truth: list[list[int]] = field(default_factory=list)
    ranked: list[list[int]] = field(default_factory=list)  # the best labels, best first
    scores: list[list[float]] = field(default_factory=list)
    accepted: list[list[int]] = field(default_factory=list)

    @property
    def ok_count(self) -> int:
        return len(self.truth)


def _read(reader: RowReader, column: str, labels: Labels, *, has_accepted: bool) -> _Rows:
    names = ["item_index", "item_id", "status", "error_code", "error_detail", "labels", "scores"]
    names += [column, "model_fingerprint", *([ACCEPTED_COLUMN] if has_accepted else [])]
    found = _Rows()
    for batch in reader.read(names).batches:
        for row in batch.to_pylist():
            found.ids.append(row["item_id"])
            found.values.append(row[column])
            found.ok.append(row["status"] == ItemStatus.OK)
            if not found.ok[-1]:
                named = (row[name] or "" for name in ("item_id", "error_code", "error_detail"))
                found.failed.append(FailedItem(row["item_index"], *named))
                continue
            found.fingerprint = found.fingerprint or row["model_fingerprint"]
            found.ok[-1] = _add(found, row, row[column], labels)
            found.unlabelled += not found.ok[-1]
    return found


def _add(found: _Rows, row: dict[str, Any], value: Any, labels: Labels) -> bool:
    """Add a row, if it has a truth; return whether it has."""
    where = f"item {row['item_index']} ({row['item_id']})"
    if not np.isfinite(row["scores"]).all():
        raise UsageError(f"{where}: a score is not a number: the model is damaged, or overflows")
    truth = labels.truth_of(value, f"{where}: the truth")
    if truth is None:
        return False
    found.truth.append(truth)
    found.ranked.append([labels.answer(name, truth, where)[0] for name in row["labels"]])
    found.scores.append(row["scores"])
    accepted = (labels.answer(name, truth, where) for name in row.get(ACCEPTED_COLUMN) or ())
    found.accepted.append([index for indexes in accepted for index in indexes])
    return True


def _softmax_measure(
    read: _Rows, job: Job, labels: Labels, groups: Mapping[str, str], notes: list[str]
) -> Callable[[Array], Measured]:
    names = labels.names
    truth = np.array([one[0] for one in read.truth])
    predicted = np.array([one[0] for one in read.ranked])
    # Below the top k all labels are equally far away.
    rank = np.array([ranked.index(true) if true in ranked else len(names)
                     for ranked, (true,) in zip(read.ranked, read.truth, strict=True)])  # fmt: skip
    no_five = []
    if len(names) < TOP_FIVE:
        no_five = [f"acc5 is null: there are fewer than {TOP_FIVE} labels"]
    elif job.top_k < TOP_FIVE:
        no_five = [f"acc5 is null: the rows have {job.top_k} labels each, label with a higher top k"]

    def measure(mask: Array) -> Measured:
        kept = mask[np.array(read.ok, bool)]
        found = classification_measured(Ranks(predicted[kept], rank[kept]), truth[kept], names, no_five)
        return found.grouped(class_groups(found.classes, groups), notes)

    return measure


def _accepted_measure(
    read: _Rows, job: Job, labels: Labels, groups: Mapping[str, str], notes: list[str]
) -> Callable[[Array], Measured]:
    names = labels.names
    has_all = all(len(ranked) == len(names) for ranked in read.ranked)
    scores = np.zeros((read.ok_count, len(names)), np.float32)
    if has_all:
        np.put_along_axis(scores, np.array(read.ranked), np.array(read.scores, np.float32), axis=1)
        for indexes in labels.namesakes:  # of equal scores
            scores[:, indexes] = scores[:, indexes].max(axis=1, keepdims=True)
    rows = AcceptedRows(
        truth=matrix_of(read.truth, len(names)),
        accepted=matrix_of(read.accepted, len(names)),
        best_accepted=np.array([one[0] if one else len(names) for one in read.accepted]),
        best_score=np.array([one[0] for one in read.scores], np.float32),
        scores=scores if has_all else None,
    )

    def measure(mask: Array) -> Measured:
        found = measure_accepted(rows.kept(mask[np.array(read.ok, bool)]), names, has_none=labels.has_none)
        return found.grouped(class_groups(found.classes, groups), notes)

    return measure
