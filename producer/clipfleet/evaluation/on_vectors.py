"""Evaluation of labels on the stored vectors of an output: texts are embedded, no image is fetched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from clipfleet.contract.label_sets import LabelSet
from clipfleet.errors import UsageError
from clipfleet.evaluation.measuring import class_groups
from clipfleet.evaluation.on_roots import measured_by, prompts_of
from clipfleet.evaluation.outcome import Evaluation, Measured
from clipfleet.evaluation.truth import Labels, items_hash, matrix_of, texts_of, truth_column
from clipfleet.evaluation.vectors import Embedder, ModelOptions, embedded
from clipfleet.results.rows import RowReader, require_of_images
from clipfleet.wording import counted

Array = np.ndarray


def evaluate_vectors(reader: RowReader, column: str, label_set: LabelSet, embedder: Embedder) -> Evaluation:
    """Classify stored vectors with a label set, and compare with a column of the source.

    Args:
        reader: of the output.
        column: see `evaluate_rows`.
        label_set: without thresholds. Where the column holds lists, the order of the items by each label is
            measured.
        embedder: embeds the prompts, with the model of the output.

    Raises:
        UsageError: no such column, a value that is no label, no vectors, or a label set that needs more.
        WorldError: the job of the prompts failed, or Redis or an output is unavailable.
    """
    job = reader.job()
    if job is None:
        raise UsageError(f"{reader.uri}: no job has this output, so its model is not known")
    require_of_images(job, reader.uri)
    if label_set.has_thresholds:
        raise UsageError(
            "a label set with `none` or of kind multi decides by its background, which vectors do not "
            "have: classify with it, then evaluate the rows"
        )
    names, templates = texts_of(reader, label_set, "give the names as `labels=`")
    images = embedded(reader)
    if not images.ok.any():
        raise UsageError(f"{reader.uri}: none of {len(images.ok):,} rows has a vector")
    truth = _truth(reader, truth_column(reader, column), names, images.ok)
    if not truth.known.any():
        raise UsageError(f"{reader.uri}: none of {len(images.ok):,} rows has a vector and a truth")
    prompts = prompts_of(names, [template.replace("{}", "{c}") for template in templates])
    texts = replace(embedder, options=ModelOptions.of_job(job)).texts(prompts)
    unlabelled = int((images.ok & ~truth.known).sum())
    notes = [f"left out: {counted(unlabelled, 'item')} without a truth"] if unlabelled else []
    measure = _grouped(measured_by(images, texts, names, truth.values), label_set, notes)
    return Evaluation(
        source=reader.uri, split=None, task="zeroshot_classification", dataset=reader.uri, model=job.model,
        precision=job.precision, decode=job.decode, model_fingerprint=images.model_fingerprint,
        outputs={"images": reader.uri, "texts": texts.output}, items_ok=truth.known, measure=measure,
        measured=measure(truth.known), failed=images.failed,
        truth_hash=truth.hash,
    )  # fmt: skip


def _grouped(
    measure: Callable[[Array], Measured], label_set: LabelSet, notes: list[str]
) -> Callable[[Array], Measured]:
    def grouped(mask: Array) -> Measured:
        found = measure(mask)
        return found.grouped(class_groups(found.classes, label_set.groups), notes)

    return grouped


@dataclass(frozen=True, slots=True)
class _Truth:
    """The truth of all items."""

    values: Array  # int (items,), or bool (items, labels); of items that are not judged 0
    known: Array  # bool (items,): those with a vector and a truth
    hash: str  # see `items_hash`


def _truth(reader: RowReader, column: str, names: Sequence[str], ok: Array) -> _Truth:
    stream = reader.read(["item_index", "item_id", column])
    labels = Labels(names, is_multi=pa.types.is_list(stream.schema.field(column).type))
    found: list[list[int]] = [[] for _ in ok]
    known, ids, values = ok.copy(), list[str](), list[Any]()
    for batch in stream.batches:
        for row in batch.to_pylist():
            number, item_id = row["item_index"], row["item_id"]
            ids.append(item_id)
            values.append(row[column])
            if ok[number]:
                truth = labels.truth_of(row[column], f"item {number} ({item_id}): the truth")
                known[number] = truth is not None
                found[number] = truth or []
    one_each = np.array([one[0] if one else 0 for one in found], np.int64)
    truths = matrix_of(found, len(names)) if labels.is_multi else one_each
    return _Truth(truths, known, items_hash(ids, values))
