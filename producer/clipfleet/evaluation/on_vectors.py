"""Evaluation of labels on the stored vectors of an output: texts are embedded, no image is fetched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from clipfleet.contract.jobs import Job
from clipfleet.contract.label_sets import LabelSet, short_hash
from clipfleet.errors import UsageError
from clipfleet.evaluation.measuring import class_groups
from clipfleet.evaluation.on_roots import measured_by, prompts_of
from clipfleet.evaluation.outcome import Evaluation, Measured
from clipfleet.evaluation.truth import Labels, matrix_of, truth_column
from clipfleet.evaluation.vectors import Embedded, Embedder, ModelOptions, embedded
from clipfleet.results.rows import RowReader

Array = np.ndarray


def evaluate_vectors(reader: RowReader, column: str, label_set: LabelSet, embedder: Embedder) -> Evaluation:
    """Classify stored vectors with a label set, and compare with a column of the source.

    Args:
        reader: of the output.
        column: see `evaluate_rows`.
        label_set: single, or of kind `multi`: then the order of the items by each label is measured.
        embedder: embeds the prompts, with the model of the output.

    Raises:
        UsageError: no such column, a value that is no label, no vectors, or a label set that needs more.
        WorldError: the job of the prompts failed, or Redis or an output is unavailable.
    """
    job = reader.job()
    if job is None:
        raise UsageError(f"{reader.uri}: no job has this output, so its model is not known")
    if label_set.none:
        raise UsageError("a label set with `none` decides by its background: label with it, then evaluate")
    if not label_set.labels:
        raise UsageError(f"only workers know the labels of the preset {label_set.preset}: give the labels")
    images = embedded(reader)
    if not images.ok.any():
        raise UsageError(f"{reader.uri}: none of {len(images.ok):,} rows has a vector")
    labels = Labels(label_set.labels, is_multi=label_set.has_thresholds)
    truth, identity = _truth(reader, truth_column(reader, column), labels, images)
    templates = [template.replace("{}", "{c}") for template in label_set.templates]
    prompts = prompts_of(label_set.labels, templates)
    texts = replace(embedder, options=_options_of(job)).texts(prompts)
    measure = _grouped(measured_by(images, texts, label_set.labels, truth), label_set)
    return Evaluation(
        source=reader.uri, split=None, task="zeroshot_classification", dataset=reader.uri, model=job.model,
        precision=job.precision, decode=job.decode, model_fingerprint=images.model_fingerprint,
        outputs={"images": reader.uri, "texts": texts.output}, items_ok=images.ok, measure=measure,
        measured=measure(images.ok), failed=images.failed,
        truth_hash=short_hash([identity, list(labels.names)]),
    )  # fmt: skip


def _options_of(job: Job) -> ModelOptions:
    return ModelOptions(job.model, job.precision, job.decode)


def _grouped(measure: Callable[[Array], Measured], label_set: LabelSet) -> Callable[[Array], Measured]:
    def grouped(mask: Array) -> Measured:
        found = measure(mask)
        return found.grouped(class_groups(found.classes, label_set.groups), ())

    return grouped


def _truth(reader: RowReader, column: str, labels: Labels, images: Embedded) -> tuple[Array, list[list[str]]]:
    """The truth of all items (of failed ones 0), and ids and values to identify it."""
    found: list[list[int]] = [[] for _ in images.ok]
    identity: list[list[str]] = []
    for batch in reader.read(["item_index", "item_id", column]).batches:
        for row in batch.to_pylist():
            number, item_id = row["item_index"], row["item_id"]
            identity.append([item_id, repr(row[column])])
            if images.ok[number]:
                found[number] = labels.truth_of(row[column], f"item {number} ({item_id}): the truth")
    if labels.is_multi:
        return matrix_of(found, len(labels.names)), identity
    return np.array([one[0] if one else 0 for one in found], np.int64), identity
