"""Samples from marks: what people say about labels of items, and the vectors of those items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from clipfleet.contract.jobs import Job
from clipfleet.contract.label_sets import DEFAULT_TEMPLATE, LabelSet
from clipfleet.errors import UsageError
from clipfleet.evaluation.vectors import ModelOptions
from clipfleet.labels.marks import Mark, MarkVerdict, Purpose, read_marks
from clipfleet.marking.matching import MarkedItem, MatchedMarks, match_marks
from clipfleet.results.rows import RowReader
from clipfleet.training.of_outputs import groups_of, vectors_of
from clipfleet.training.samples import Samples
from clipfleet.wording import counted


def samples_of_marks(
    reader: RowReader, paths: Sequence[Path], label_set: LabelSet | None = None, min_items: int = 0
) -> Samples:
    """Read marks and the vectors of their items; an item counts for the labels that it is marked for.

    It counts as many times as it stands for items that were not drawn: 1 / its inclusion probability.

    Only fit marks count: certify marks are there to test what fit marks chose, corrections are not drawn.

    Args:
        reader: of the rows.
        paths: files of marks.
        label_set: its labels in their order, and its templates; None: the labels of the marks, in the order
            of the job's label sets.
        min_items: see `Samples.without_rare`.

    Raises:
        UsageError: a file is not one of marks, does not match, or has too few.
        OutputDamagedError: rows are missing.
    """
    job, images = vectors_of(reader)
    own = [label for one in job.label_sets for label in one.labels]
    marks = read_marks(paths, label_set.labels if label_set is not None else tuple(dict.fromkeys(own)))
    fit = [mark for mark in marks if mark.purpose is Purpose.FIT]
    if not fit:
        why = f": all {len(marks):,} are certify marks or corrections, which never fit" if marks else ""
        raise UsageError(
            f"{', '.join(map(str, paths))}: no fit marks{why}; draw items with `clipfleet sample`"
        )
    chosen = label_set or _marked_labels(job, own, fit)
    matched = match_marks(reader, chosen, fit, _where(label_set, job, reader))
    labels = tuple(label for label in chosen.labels if _clear(matched, label))
    indexes = sorted({one.item_index for label in labels for one in _clear(matched, label)})
    place = {index: number for number, index in enumerate(indexes)}
    truth, known = (np.zeros((len(indexes), len(labels)), bool) for _ in range(2))
    weights = np.zeros(truth.shape)
    for column, label in enumerate(labels):
        marked = _clear(matched, label)
        places = [place[one.item_index] for one in marked]
        known[places, column] = True
        truth[places, column] = [one.verdict is MarkVerdict.YES for one in marked]
        weights[places, column] = [1 / one.inclusion_probability for one in marked]
    ids, hashes = _items(reader, indexes)
    samples = Samples(
        features=images.features[indexes], truth=truth, known=known, weights=weights, labels=labels,
        ids=ids, groups=groups_of(hashes), images=images.origin, options=ModelOptions.of_job(job),
        source=reader.uri,
        templates=_templates(job, labels) if label_set is None else label_set.templates,
        notes=tuple(_notes(matched, marks)),
    ).without_rare(min_items)  # fmt: skip
    samples.require_enough()
    return samples


def _marked_labels(job: Job, own: Sequence[str], marks: Sequence[Mark]) -> LabelSet:
    """The labels of the marks, those of the job in its order first."""
    marked = {mark.label for mark in marks}
    labels = tuple(
        label for label in dict.fromkeys([*own, *(mark.label for mark in marks)]) if label in marked
    )
    return LabelSet(labels=labels)


def _templates(job: Job, labels: Sequence[str]) -> tuple[str, ...]:
    """The templates that the job has for these labels; none if those of two labels differ."""
    found = set()
    for label in labels:
        owners = (one.templates for one in job.label_sets if label in one.labels)
        found.add(next(owners, (DEFAULT_TEMPLATE,)))
    return found.pop() if len(found) == 1 else ()


def _where(label_set: LabelSet | None, job: Job, reader: RowReader) -> str:
    return f"the label set {label_set.name}" if label_set is not None else reader.uri


def _clear(matched: MatchedMarks, label: str) -> list[MarkedItem]:
    """Items that people say yes or no about."""
    marked = matched.of(Purpose.FIT, label)
    return [one for one in marked if one.verdict in (MarkVerdict.YES, MarkVerdict.NO)]


def _items(reader: RowReader, indexes: Sequence[int]) -> tuple[tuple[str, ...], list[str | None]]:
    """Ids and content hashes of items."""
    found: dict[int, tuple[str, str | None]] = {}
    wanted = set(indexes)
    for batch in reader.read(["item_index", "item_id", "content_hash"]).batches:
        columns = (one.to_pylist() for one in batch.columns)
        found.update(
            (index, (item_id, content_hash))
            for index, item_id, content_hash in zip(*columns, strict=True)
            if index in wanted
        )
    return tuple(found[index][0] for index in indexes), [found[index][1] for index in indexes]


def _notes(matched: MatchedMarks, marks: Sequence[Mark]) -> Iterator[str]:
    purposes = Counter(mark.purpose for mark in marks)
    if corrections := purposes[Purpose.CORRECT]:
        yield f"left out: {counted(corrections, 'correction')}, which no sample has drawn"
    if certify := purposes[Purpose.CERTIFY]:
        yield f"left out: {counted(certify, 'certify mark')}, which test and never fit"
    if matched.void:
        yield f"left out: {counted(len(matched.void), 'mark')} of images that have changed or are gone"
    if matched.disagreements:
        yield f"left out: {counted(len(matched.disagreements), 'mark')} on which people disagree"
