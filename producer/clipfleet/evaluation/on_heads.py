"""Evaluation of a head: on stored vectors, on the columns that a job has written, on a webdataset root."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from clipfleet.contract.heads import Head, HeadKind, JobHead, kept_source
from clipfleet.contract.jobs import Exif, Job
from clipfleet.contract.label_sets import short_hash
from clipfleet.contract.model_names import normalise_model
from clipfleet.contract.parts import ItemStatus
from clipfleet.errors import UsageError
from clipfleet.evaluation.head_metrics import (
    HeadAnswers,
    measure_choice,
    measure_labels,
    measure_number,
    true_number,
)
from clipfleet.evaluation.on_roots import (
    DEFAULT_RECALLS,
    embedded_images,
    read_label_vectors,
    read_labels,
)
from clipfleet.evaluation.outcome import EvaluatedHead, Evaluation, Measured
from clipfleet.evaluation.roots import DatasetType, Root, class_labels
from clipfleet.evaluation.truth import Labels, data_hash, items_hash, matrix_of, truth_column
from clipfleet.evaluation.vectors import Embedded, Embedder, FailedItem, ModelOptions, embedded
from clipfleet.heads.arithmetic import head_logits, head_scores
from clipfleet.heads.choosing import require_length, require_model
from clipfleet.heads.files import HeadFile
from clipfleet.results.rows import RowReader, require_of_images
from clipfleet.wording import counted

Array = np.ndarray

_TASKS = {
    HeadKind.CLASSIFY: "linear_probe",
    HeadKind.MULTILABEL: "linear_probe",
    HeadKind.REGRESS: "regression",
}
_FITTED_ON_THESE = "the head was fitted on these items: the figures say nothing about others"
_FITTED_HERE = (
    "the head was fitted on items of this output: figures of the same items say nothing about others"
)


def evaluate_head(reader: RowReader, column: str, file: HeadFile) -> Evaluation:
    """Score the stored vectors of an output with a head, and compare with a column of the source.

    The column holds a label or its index; for kind multilabel any number of them, see `Labels`; for kind
    regress a number, the label or `none`. Nothing is run.

    Raises:
        UsageError: no such column, a value that is no label, no vectors, or those of another model.
    """
    job, head = _job_of(reader), file.head
    require_of_images(job, reader.uri)
    images = embedded(reader)
    if not images.ok.any():
        raise UsageError(f"{reader.uri}: none of {len(images.ok):,} rows has a vector")
    _require_vectors(file, ModelOptions.of_job(job), images)
    truth = _Truth(head)
    known = images.ok.copy()
    name = truth_column(reader, column)
    for batch in reader.read(["item_index", "item_id", name]).batches:
        for number, item_id, value in zip(*(one.to_pylist() for one in batch.columns), strict=True):
            known[number] = truth.add(number, item_id, value, is_judged=bool(images.ok[number]))
    answers = _answers(file, images.features, np.flatnonzero(known))
    return _evaluation(
        reader, job, file.of_job, truth, answers, known,
        fingerprint=images.model_fingerprint, outputs={"images": reader.uri}, failed=images.failed,
    )  # fmt: skip


def evaluate_head_rows(reader: RowReader, column: str, name: str) -> Evaluation:
    """Compare the columns of a head of a job with a column of the source.

    Args:
        reader: of the output.
        column: see `evaluate_head`.
        name: of the head.

    Raises:
        UsageError: the job has no such head, no such column, or a value is no label.
    """
    job = _job_of(reader)
    known_heads = {one.name: one for one in job.heads}
    if name not in known_heads:
        there = f"its heads are {', '.join(known_heads)}" if known_heads else "its job had none"
        raise UsageError(
            f"{reader.uri}: has no columns of a head {name!r}, and no file has this name: {there}"
        )
    read = _read_rows(reader, known_heads[name], truth_column(reader, column))
    notes = [] if reader.finished_at() is not None else ["the job has not finished: rows may be missing"]
    return _evaluation(
        reader, job, known_heads[name], read.truth, read.answers(), np.array(read.known, bool),
        fingerprint=read.fingerprint, outputs={"rows": reader.uri}, failed=tuple(read.failed), notes=notes,
    )  # fmt: skip


def evaluate_head_root(
    root: Root, embedder: Embedder, file: HeadFile, recalls: Sequence[int] = DEFAULT_RECALLS
) -> Evaluation:
    """Evaluate a head on one split of a root, as `clip_benchmark eval --task linear_probe` does.

    The truth is read and checked first, then the images are embedded by a job, see `Embedder`: upright, if
    the head was fitted on images with `exif=apply`.

    Args:
        root: the split.
        embedder: the model of the head.
        file: the head; its labels are names of classes of the root.
        recalls: as of `evaluate_root`, with which this may be compared.

    Raises:
        SourceError: the root is incomplete, or its truth is not about its classes.
        UsageError: the root is about something else, or the vectors are those of another model.
        WorldError: a job failed, or Redis or an output is unavailable.
    """
    head = file.head
    _require_kind(root, head)
    options = replace(embedder.options, exif=Exif(head.input.exif or Exif.IGNORE))
    embedder = replace(embedder, options=options)
    require_model([file], normalise_model(options.model), decode=options.decode)
    names = class_labels(root.classnames())
    places, notes = _places(head, names, root.uri)
    is_multi = head.kind is HeadKind.MULTILABEL
    truth = read_label_vectors(root, len(names)) if is_multi else read_labels(root, len(names))
    images = embedded_images(root, embedder, len(truth))
    _require_vectors(file, options, images)
    if head.training.source == kept_source(root.words):
        notes.append(_FITTED_ON_THESE)
    answers = _answers(file, images.features).over(places, len(names))
    of_kind = measure_labels if is_multi else measure_choice

    def measure(mask: Array) -> Measured:
        return of_kind(answers.kept(mask), truth[mask], names).grouped((), notes)

    return Evaluation(
        source=root.uri, split=root.split, task=_TASKS[head.kind], dataset=root.name, model=options.model,
        precision=options.precision, decode=options.decode, model_fingerprint=images.model_fingerprint,
        outputs={"images": images.output}, items_ok=images.ok, measure=measure,
        measured=measure(images.ok), failed=images.failed,
        truth_hash=short_hash([root.uri, root.split, root.state, recalls]),
        head=EvaluatedHead.of(file.of_job),
    )  # fmt: skip


def _answers(file: HeadFile, vectors: Array, chosen: Array | None = None) -> HeadAnswers:
    """What a head says of vectors, see `head_scores`; of kind classify only the order of labels counts."""
    numbers_of = head_logits if file.head.kind is HeadKind.CLASSIFY else head_scores
    return HeadAnswers.of(file.head, numbers_of(file, vectors, chosen))


def _require_vectors(file: HeadFile, options: ModelOptions, images: Embedded) -> None:
    """Refuse a head that does not take these vectors, where no worker does. Raises `UsageError`."""
    model, wanted = normalise_model(options.model), file.head.input
    require_length([file], model, images.features.shape[1])
    require_model([file], model, decode=options.decode, exif=options.exif)
    made = images.model_fingerprint
    if None not in (wanted.fingerprint, made) and wanted.fingerprint != made:
        raise UsageError(
            f"head {file.head.name!r} takes vectors with the fingerprint {wanted.fingerprint} "
            f"({wanted.model}), these have {made} ({model}): weights or precision differ; fit a head on "
            "these vectors, or embed the source as that head was fitted"
        )


def _require_kind(root: Root, head: Head) -> None:
    kinds = {DatasetType.CLASSIFICATION: HeadKind.CLASSIFY, DatasetType.MULTILABEL: HeadKind.MULTILABEL}
    wanted = kinds.get(root.kind)
    if wanted is None:
        raise UsageError(f"{root.uri}: its type is {root.kind}, which no head is for: leave `head=` out")
    if head.kind is not wanted:
        raise UsageError(
            f"{root.uri}: its type is {root.kind}, for a head of kind {wanted}; {head.name!r} is of kind "
            f"{head.kind}"
        )


def _places(head: Head, names: Sequence[str], uri: str) -> tuple[list[int], list[str]]:
    """Index of each label among the classes of a root, and notes on classes that the head does not know."""
    indexes = {name: index for index, name in enumerate(names)}
    for label in head.labels:
        if label not in indexes:
            raise UsageError(
                f"{uri}: label {label!r} of head {head.name!r} is no class of the root: give a head that was "
                "fitted on its classes"
            )
    places = [indexes[label] for label in head.labels]
    known = set(head.labels)
    unknown = [name for name in names if name not in known]
    if not unknown:
        return places, []
    shown = f"{len(unknown):,} of the {len(names):,} classes, for example {unknown[0]}"
    return places, [f"the head does not know {shown}: their items count as wrong"]


class _Truth:
    """The truth of the items that are judged, and a hash of that of all."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._labels = Labels(
            head.labels, is_multi=head.kind is HeadKind.MULTILABEL, said=f"the labels of head {head.name!r}"
        )
        self._ids: list[str] = []
        self._judged_ids: list[str] = []
        self._all: list[Any] = []
        self._indexes: list[list[int]] = []
        self._numbers: list[float] = []
        self.missing = 0  # items that could be judged, but have no truth

    def add(self, number: int, item_id: str, value: Any, *, is_judged: bool) -> bool:
        """Add an item; return whether it is judged: whether it can be, and has a truth."""
        self._ids.append(item_id)
        self._all.append(value)
        if not is_judged:
            return False
        where = f"item {number} ({item_id}): the truth"
        if self._head.kind is HeadKind.REGRESS:
            true = true_number(value, self._head.labels[0], where)
            if true is not None:
                self._numbers.append(true)
                return True
        else:
            indexes = self._labels.truth_of(value, where)
            if indexes is not None:
                self._indexes.append(indexes)
                self._judged_ids.append(item_id)
                return True
        self.missing += 1
        return False

    @property
    def hash(self) -> str:
        """See `items_hash`."""
        return items_hash(self._ids, self._all)

    def seen_by_head(self, uri: str) -> list[str]:
        """A note if the head was fitted on the judged items, or on items of the output."""
        training = self._head.training
        if training.data_sha256 is not None and training.data_sha256 == data_hash(self._fitted()):
            return [_FITTED_ON_THESE]
        return [_FITTED_HERE] if training.source == kept_source(uri) else []

    def _fitted(self) -> Iterator[tuple[str, object]]:
        """The judged items as `data_hash` takes them."""
        names = self._head.labels
        for item_id, indexes in zip(self._judged_ids, self._indexes, strict=True):
            if self._head.kind is HeadKind.MULTILABEL:
                yield item_id, [[name, number in indexes] for number, name in enumerate(names)]
            else:
                yield item_id, names[indexes[0]]

    @property
    def values(self) -> Array:
        """Of the judged items: int (items,), bool (items, labels), or float64 (items,)."""
        if self._head.kind is HeadKind.REGRESS:
            return np.array(self._numbers, np.float64)
        if self._head.kind is HeadKind.MULTILABEL:
            return matrix_of(self._indexes, len(self._head.labels))
        return np.array([one[0] for one in self._indexes], np.int64)


@dataclass(slots=True)
class _Rows:
    """What is read of the columns of a head; lists of judged rows are in step with each other."""

    head: Head
    truth: _Truth
    fingerprint: str | None = None
    known: list[bool] = field(default_factory=list)  # of all rows: whether it is judged
    failed: list[FailedItem] = field(default_factory=list)
    best: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    accepted: list[list[int]] = field(default_factory=list)

    def answers(self) -> HeadAnswers:
        best, scores = np.array(self.best, np.int64), np.array(self.scores, np.float32)
        is_number = self.head.kind is HeadKind.REGRESS  # whose only score is in the rows
        accepted = best[:, None] == 0 if is_number else matrix_of(self.accepted, len(self.head.labels))
        return HeadAnswers(best, scores, accepted, scores[:, None] if is_number else None)


def _read_rows(reader: RowReader, job_head: JobHead, column: str) -> _Rows:
    head = job_head.head
    index = {label: number for number, label in enumerate(head.labels)}
    label_column, score_column, *accepted_column = job_head.columns
    names = ["item_index", "item_id", "status", "error_code", "error_detail", "model_fingerprint", column]
    found = _Rows(head, _Truth(head))
    for batch in reader.read([*names, *job_head.columns]).batches:
        for row in batch.to_pylist():
            is_ok = row["status"] == ItemStatus.OK
            if not is_ok:
                named = (row[name] or "" for name in ("item_id", "error_code", "error_detail"))
                found.failed.append(FailedItem(row["item_index"], *named))
            found.fingerprint = found.fingerprint or row["model_fingerprint"]
            found.known.append(
                found.truth.add(row["item_index"], row["item_id"], row[column], is_judged=is_ok)
            )
            if not found.known[-1]:
                continue
            where = f"item {row['item_index']} ({row['item_id']})"
            if not np.isfinite(row[score_column]):
                raise UsageError(f"{where}: a score is not a number: the model is damaged, or overflows")
            label = row[label_column]
            found.best.append(len(head.labels) if label is None else _index_of(label, index, where))
            found.scores.append(row[score_column])
            accepted = row[accepted_column[0]] if accepted_column else None
            found.accepted.append([_index_of(one, index, where) for one in accepted or ()])
    return found


def _index_of(label: str, index: dict[str, int], where: str) -> int:
    if label not in index:
        raise UsageError(f"{where}: its label {label!r} is not one of the head")
    return index[label]


def _job_of(reader: RowReader) -> Job:
    job = reader.job()
    if job is None:
        raise UsageError(f"{reader.uri}: no job has this output, so its model is not known")
    return job


def _evaluation(
    reader: RowReader, job: Job, job_head: JobHead, truth: _Truth, answers: HeadAnswers, known: Array,
    *, fingerprint: str | None, outputs: dict[str, str], failed: tuple[FailedItem, ...],
    notes: Sequence[str] = (),
) -> Evaluation:  # fmt: skip
    if not known.any():
        raise UsageError(f"{reader.uri}: none of {len(known):,} rows has a score of the head and a truth")
    said = [*notes]
    if truth.missing:
        said.append(f"left out: {counted(truth.missing, 'item')} without a truth")
    said += truth.seen_by_head(reader.uri)
    head, values = job_head.head, truth.values
    of_kind: Callable[[HeadAnswers, Array], Measured] = {
        HeadKind.CLASSIFY: partial(measure_choice, names=head.labels),
        HeadKind.MULTILABEL: partial(measure_labels, names=head.labels),
        HeadKind.REGRESS: partial(measure_number, head=head),
    }[head.kind]

    def measure(mask: Array) -> Measured:
        kept = mask[known]
        return of_kind(answers.kept(kept), values[kept]).grouped((), said)

    return Evaluation(
        source=reader.uri, split=None, task=_TASKS[head.kind], dataset=reader.uri, model=job.model,
        precision=job.precision, decode=job.decode, model_fingerprint=fingerprint, outputs=outputs,
        items_ok=known, measure=measure, measured=measure(known), failed=failed, truth_hash=truth.hash,
        head=EvaluatedHead.of(job_head),
    )  # fmt: skip
