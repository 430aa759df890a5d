"""Samples from the rows of an output: its vectors, and a column of its source."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from clipfleet.contract.jobs import Job
from clipfleet.contract.label_sets import DEFAULT_TEMPLATE, LabelKind, LabelSet
from clipfleet.errors import UsageError
from clipfleet.evaluation.truth import Labels, entries, matrix_of, text_of, texts_of, truth_column
from clipfleet.evaluation.vectors import Embedded, ModelOptions, embedded
from clipfleet.results.rows import RowReader, require_of_images
from clipfleet.training.samples import Samples
from clipfleet.wording import counted

_NO_NAMES = "give the names as `labels=`"
_OTHER_LABEL = ": add it to them, or leave `labels=` and `label_set=` out for all that the column holds"


def samples_of_output(
    reader: RowReader, column: str, label_set: LabelSet | None = None, min_items: int = 0
) -> Samples:
    """Read the vectors of an output and the labels of a column of its source.

    Args:
        reader: of the rows.
        column: a label per item, or a list of them; the list `A|B` as a text where the label set is of kind
            multi. Items without a label are left out, those with an empty list show none.
        label_set: its labels in their order, and its templates; None: the labels are what the column holds.
        min_items: see `Samples.without_rare`.

    Raises:
        UsageError: no such column, no vectors, a value that is no label of the set, or too few items.
        OutputDamagedError: rows are missing.
    """
    job, images = vectors_of(reader)
    stream = reader.read(["item_index", "item_id", "content_hash", truth_column(reader, column)])
    is_list = pa.types.is_list(stream.schema.field(3).type) or pa.types.is_large_list(
        stream.schema.field(3).type
    )
    ids: list[str] = [""] * len(images.ok)
    hashes: list[str | None] = [None] * len(images.ok)
    values: list[Any] = [None] * len(images.ok)
    for batch in stream.batches:
        columns = (one.to_pylist() for one in batch.columns)
        for number, item_id, content_hash, value in zip(*columns, strict=True):
            ids[number], hashes[number], values[number] = item_id, content_hash, value
    ok = np.flatnonzero(images.ok)
    names, templates = _names_of(reader, label_set, (values[number] for number in ok))
    is_multi = is_list or (label_set is not None and label_set.kind is LabelKind.MULTI)
    labels = Labels(
        names, is_multi=is_multi, has_none=label_set is not None and label_set.none,
        way_out="" if label_set is None else _OTHER_LABEL,
    )  # fmt: skip
    found = [labels.truth_of(values[number], f"item {number} ({ids[number]}): the truth") for number in ok]
    has_truth = np.array(
        [_is_known(values[number], one, is_multi) for number, one in zip(ok, found, strict=True)]
    )
    kept = ok[has_truth]
    lists = [one or [] for one, known in zip(found, has_truth, strict=True) if known]
    truth = matrix_of(lists, len(names)) if is_multi else np.array([one[0] for one in lists], np.int64)
    samples = Samples(
        features=images.features if len(kept) == len(images.ok) else images.features[kept], truth=truth,
        known=np.ones_like(truth) if is_multi else None, labels=names,
        ids=tuple(ids[number] for number in kept), images=images.origin, options=ModelOptions.of_job(job),
        groups=groups_of([hashes[number] for number in kept]),
        source=reader.uri, templates=templates,
        notes=tuple(_notes(reader, images, len(ok) - len(kept))),
    ).without_rare(min_items)  # fmt: skip
    samples.require_enough()
    return samples


def vectors_of(reader: RowReader) -> tuple[Job, Embedded]:
    """The vectors of images that an output keeps, and its job.

    Raises:
        UsageError: there are none, or nobody knows which model made them.
        OutputDamagedError: rows are missing.
    """
    job = reader.job()
    if job is None:
        raise UsageError(f"{reader.uri}: no job has this output, so its model is not known")
    require_of_images(job, reader.uri)
    images = embedded(reader)
    if not images.ok.any() or images.model_fingerprint is None:
        raise UsageError(f"{reader.uri}: none of {len(images.ok):,} rows has a vector")
    return job, images


def groups_of(hashes: Sequence[str | None]) -> np.ndarray:
    """A number for each item, the same for equal images: int64 (items,); without a hash they differ."""
    numbers: dict[str | int, int] = {}
    keys = (number if one is None else one for number, one in enumerate(hashes))
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def _is_known(value: Any, truth: list[int] | None, is_multi: bool) -> bool:
    """Whether an item has a truth; of lists an empty one is known, and means that it shows no label."""
    return value is not None if is_multi else bool(truth)


def _names_of(
    reader: RowReader, label_set: LabelSet | None, values: Iterable[Any]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Labels and templates."""
    if label_set is not None:
        return texts_of(reader, label_set, _NO_NAMES)
    names = {text_of(one) for value in values for one in entries(value)}
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name))), (DEFAULT_TEMPLATE,)
    return tuple(sorted(names)), (DEFAULT_TEMPLATE,)


def _notes(reader: RowReader, images: Embedded, unlabelled: int) -> Iterable[str]:
    if reader.finished_at() is None:
        yield "the job has not finished: rows may be missing"
    if images.failed:
        yield f"left out: {counted(len(images.failed), 'failed item')}"
    if unlabelled:
        yield f"left out: {counted(unlabelled, 'item')} without a truth"
