"""The scores of one label set in the rows of an output, as arrays. Needs numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.columns import label_columns
from clipfleet.contract.jobs import Job
from clipfleet.contract.label_sets import LARGEST_SCORE, LabelSet
from clipfleet.contract.parts import ItemStatus, extra_column_name
from clipfleet.errors import OutputConflictError, OutputDamagedError, UsageError
from clipfleet.labels.calibrating import logits, sigmoid
from clipfleet.labels.sets import read_label_set
from clipfleet.results.label_sets import label_sets_of
from clipfleet.results.rows import RowReader

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_SHOWN = 10  # labels in a message


@dataclass(frozen=True, slots=True)
class Scores:
    """One label in n rows."""

    p: npt.NDArray[np.float32]  # (n,); where it is not exact, an upper bound
    z: Floats  # (n,) likewise
    is_exact: Flags  # (n,): the label is among the top k of the row


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """Scores of one label set in all rows that have any, in the order of the output."""

    uri: str  # of the output
    job: Job
    label_set: LabelSet  # whose scores the rows have
    model_fingerprint: str
    item_index: npt.NDArray[np.int64]  # (n,)
    last: npt.NDArray[np.float32]  # (n,): lowest score of a row, an upper bound for labels that it lacks
    # One entry per row and label of its top k, sorted by label:
    entry_rows: npt.NDArray[np.int32]
    entry_scores: npt.NDArray[np.float32]
    starts: npt.NDArray[np.int64]  # (labels + 1,): where the entries of each label begin

    def scores(self, label: str, label_set: LabelSet | None = None) -> Scores:
        """Scores of a label, as a set with the same z computes them; by default the rows' own.

        The rows' own p is exact: it is the number that the worker compared with the threshold.
        """
        number = self.label_set.labels.index(label)
        entries = slice(self.starts[number], self.starts[number + 1])
        p = self.last.copy()
        p[self.entry_rows[entries]] = self.entry_scores[entries]
        is_exact = np.zeros(len(p), np.bool_)
        is_exact[self.entry_rows[entries]] = True
        slope, intercept = calibration(self.label_set, label)
        z = (logits(p) - intercept) / slope
        if label_set is not None and calibration(label_set, label) != (slope, intercept):
            slope, intercept = calibration(label_set, label)
            p = np.minimum(sigmoid(slope * z + intercept), LARGEST_SCORE).astype(np.float32)
        return Scores(p, z, is_exact)

    def accepted(self, label: str, label_set: LabelSet) -> Flags:
        """Which rows the threshold of a label accepts, (n,).

        Raises:
            UsageError: a row may be among them, but its top k does not have the label.
        """
        scores = self.scores(label, label_set)
        reached = scores.p.astype(np.float64) >= label_set.threshold(label)  # as the worker compares
        self.require_exact(label, reached & ~scores.is_exact)
        return reached

    def saturated(self, label: str) -> int:
        """Rows whose score of a label is the largest one that there is: no threshold separates them."""
        number = self.label_set.labels.index(label)
        entries = self.entry_scores[self.starts[number] : self.starts[number + 1]]
        return int((entries >= LARGEST_SCORE).sum())

    def require_exact(self, label: str, doubtful: Flags) -> None:
        """Raise an error if rows lack a score that matters.

        Raises:
            UsageError: there are such rows.
        """
        if count := int(doubtful.sum()):
            raise UsageError(
                f"{self.uri}: {count:,} of {len(doubtful):,} rows lack the score of {label!r}, which is not "
                f"among their best {self.job.top_k}: classify with {len(self.label_set.labels)} as `top_k=`"
            )


def calibration(label_set: LabelSet, label: str) -> tuple[float, float]:
    """Slope and intercept of a label."""
    return label_set.slope or 1.0, label_set.intercepts.get(label, 0.0)


def read_scored_rows(reader: RowReader, set_name: str | None = None) -> ScoredRows:
    """Read all scores of one label set of a job.

    Args:
        reader: of the rows.
        set_name: name of the label set; None: the only one.

    Raises:
        UsageError: the job has no such label set, or its scores have no thresholds.
        OutputConflictError: the rows are of several models.
        OutputDamagedError: a score is missing or not a number. Otherwise see `RowReader.read`.
    """
    label_set = _label_set_of(reader, set_name)
    job = reader.job()
    if job is None:  # removed since
        raise UsageError(f"{reader.uri}: its job is gone")
    if not label_set.has_thresholds:
        raise UsageError(
            f"{reader.uri}: its scores of {label_set.name!r} are a softmax, which has no thresholds: "
            "classify with `multi=True` or `none=True`"
        )
    return _Collected(reader, job, label_set).read()


def thresholds_of(rows: ScoredRows, labels: str | None) -> tuple[LabelSet, str]:
    """The label set of a file, or without one that of the rows; and its name in messages.

    Raises:
        UsageError: the file is invalid, or its z is not the one of the rows.
    """
    if labels is None:
        return rows.label_set, rows.uri
    label_set = read_label_set(labels)
    require_same_z(rows, label_set, labels)
    return label_set, labels


def require_same_z(rows: ScoredRows, given: LabelSet, where: str) -> None:
    """Refuse a label set whose z is not the one of the rows.

    Raises:
        UsageError: with what differs.
    """
    own = rows.label_set
    if not given.has_thresholds:
        raise UsageError(f"{where}: no thresholds: add `kind: multi` or `none: true`")
    differs = [
        name
        for name in ("labels", "templates", "background", "not_prompts")
        if getattr(own, name) != getattr(given, name)
    ]
    if differs:
        name = differs[0].replace("not_prompts", "not")
        raise UsageError(
            f"{where}: its `{name}` is not that of {rows.uri}, whose scores mean something else: classify "
            "with this label set first"
        )


def asked_labels(labels: Sequence[str], label_set: LabelSet, where: str) -> list[str]:
    """The labels that a user named, each once; all where none is named.

    Raises:
        UsageError: a label is unknown.
    """
    for label in labels:
        if label not in label_set.labels:
            raise UsageError(f"there is no label {label!r} in {where}; it has {_some(label_set.labels)}")
    return list(dict.fromkeys(labels or label_set.labels))


def _some(labels: Sequence[str]) -> str:
    shown = ", ".join(labels[:_SHOWN])
    return shown if len(labels) <= _SHOWN else f"{shown} and {len(labels) - _SHOWN:,} more"


def _label_set_of(reader: RowReader, set_name: str | None) -> LabelSet:
    sets = label_sets_of(reader)
    names = ", ".join(one.name for one in sets)
    if set_name is None and len(sets) > 1:
        raise UsageError(f"{reader.uri}: its job has several label sets: choose one with `set=`: {names}")
    found = [one for one in sets if set_name in (None, one.name)]
    if not found:
        raise UsageError(f"{reader.uri}: its job has no label set {set_name!r}; it has {names}")
    return found[0]


class _Collected:
    """Collects scores batch by batch: 8 bytes per row and label of its top k, 30 while they are sorted."""

    def __init__(self, reader: RowReader, job: Job, label_set: LabelSet) -> None:
        self._reader, self._job, self._label_set = reader, job, label_set
        _, _, self._labels, self._scores = (
            label_columns(label_set.name)
            if label_set.name in (one.name for one in job.named_label_sets)
            else ("label", "score", "labels", "scores")
        )
        self._chooser = None if job.label_set_column is None else extra_column_name(job.label_set_column)
        self._fingerprints: set[str] = set()
        self._indexes: list[npt.NDArray[np.int64]] = []
        self._sizes: list[npt.NDArray[np.int32]] = []
        self._codes: list[npt.NDArray[np.int32]] = []
        self._values: list[npt.NDArray[np.float32]] = []

    def read(self) -> ScoredRows:
        columns = ["item_index", "status", self._labels, self._scores, "model_fingerprint"]
        for batch in self._reader.read([*columns, *([self._chooser] if self._chooser else [])]).batches:
            self._add(batch)
        if len(self._fingerprints) > 1:
            raise OutputConflictError(
                f"{self._reader.uri}: its rows are of several models "
                f"({', '.join(sorted(self._fingerprints))}): classify all items with one"
            )
        if not self._indexes:
            raise UsageError(f"{self._reader.uri}: no row has scores")
        item_index, sizes = np.concatenate(self._indexes), np.concatenate(self._sizes)
        self._require_unique(item_index)
        codes, values = np.concatenate(self._codes), np.concatenate(self._values)
        for batches in (self._indexes, self._sizes, self._codes, self._values):
            batches.clear()  # which would be a second copy
        rows = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        last = values[np.cumsum(sizes) - 1]
        counts = np.bincount(codes, minlength=len(self._label_set.labels))
        order = np.argsort(codes, kind="stable")
        del codes
        return ScoredRows(
            uri=self._reader.uri,
            job=self._job,
            label_set=self._label_set,
            model_fingerprint=next(iter(self._fingerprints), ""),
            item_index=item_index,
            last=last,
            entry_rows=rows[order],
            entry_scores=values[order],
            starts=np.concatenate([[0], np.cumsum(counts)]),
        )

    def _require_unique(self, item_index: npt.NDArray[np.int64]) -> None:
        in_order = np.sort(item_index)
        if (same := in_order[1:][in_order[1:] == in_order[:-1]]).size:
            raise OutputDamagedError(f"{self._reader.uri}: item {same[0]} has several rows: classify again")

    def _add(self, batch: pa.RecordBatch) -> None:
        batch = batch.filter(pc.equal(batch["status"], pa.scalar(ItemStatus.OK.value)))
        if self._chooser is not None:
            batch = batch.filter(pc.equal(batch[self._chooser], pa.scalar(self._label_set.name)))
        if not batch.num_rows:
            return
        self._fingerprints.update(text for text in pc.unique(batch["model_fingerprint"]).to_pylist() if text)
        indexes = batch["item_index"].to_numpy()
        labels, scores = batch[self._labels], batch[self._scores]
        sizes = pc.fill_null(pc.list_value_length(scores), 0).to_numpy(zero_copy_only=False)
        self._require(indexes, sizes > 0, "has no scores")
        values = scores.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        owners = np.repeat(np.arange(len(sizes)), sizes)
        self._require(indexes[owners], np.isfinite(values), "has a score that is not a number")
        known = pa.array(self._label_set.labels, pa.string())
        codes = pc.fill_null(pc.index_in(labels.flatten(), value_set=known), -1).to_numpy(
            zero_copy_only=False
        )
        if len(codes) != len(values):
            raise OutputDamagedError(f"{self._reader.uri}: labels and scores differ in number")
        self._require(indexes[owners], codes >= 0, "has a label that its label set lacks")
        self._indexes.append(np.asarray(indexes, np.int64))
        self._sizes.append(np.asarray(sizes, np.int32))
        self._codes.append(np.asarray(codes, np.int32))
        self._values.append(values)

    def _require(self, indexes: npt.NDArray[np.int64], is_good: Flags, problem: str) -> None:
        if not is_good.all():
            index = int(indexes[int(np.argmin(is_good))])
            raise OutputDamagedError(
                f"{self._reader.uri}: item {index} {problem}: classify again, with `precision=` fp32 if the "
                "model overflows in this precision"
            )
