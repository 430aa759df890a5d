"""Samples from one split of a webdataset root, embedded by the jobs of evaluations."""

from __future__ import annotations

import numpy as np

from clipfleet.errors import UsageError
from clipfleet.evaluation.on_roots import embedded_images, read_label_vectors, read_labels
from clipfleet.evaluation.roots import DatasetType, Root, class_labels
from clipfleet.evaluation.vectors import Embedded, Embedder
from clipfleet.outputs import open_output
from clipfleet.results.part_rows import PartRows
from clipfleet.training.of_outputs import groups_of
from clipfleet.training.samples import Samples
from clipfleet.wording import counted


def samples_of_root(
    root: Root, embedder: Embedder, min_items: int = 0, *, with_templates: bool = False
) -> Samples:
    """Embed the images of a split, and read their labels.

    Args:
        root: the split.
        embedder: the model, and where its vectors are kept.
        min_items: see `Samples.without_rare`.
        with_templates: also read the templates of the root, which not every root has.

    Raises:
        SourceError: the root is incomplete, or its truth is not about its classes.
        UsageError: it is one for retrieval, no image could be embedded, or a class has too few.
        WorldError: the job failed, or Redis or an output is unavailable.
    """
    if root.kind is DatasetType.RETRIEVAL:
        raise UsageError(f"{root.uri}: its type is {root.kind}: captions are no labels to fit a head on")
    names = class_labels(root.classnames())
    is_multi = root.kind is DatasetType.MULTILABEL
    truth = read_label_vectors(root, len(names)) if is_multi else read_labels(root, len(names))
    images = embedded_images(root, embedder, len(truth))
    kept = images.ok
    templates = (template.replace("{c}", "{}") for template in root.templates()) if with_templates else ()
    samples = Samples(
        features=images.of_items(kept), truth=truth[kept],
        known=np.ones_like(truth[kept]) if is_multi else None, labels=names,
        ids=tuple(f"{root.split}/{number}" for number in np.flatnonzero(kept)), images=images.origin,
        options=embedder.options, groups=groups_of(_hashes(images, kept)), source=root.words,
        templates=tuple(templates),
        notes=(f"left out: {counted(len(images.failed), 'failed item')}",) if images.failed else (),
    ).without_rare(min_items)  # fmt: skip
    samples.require_enough()
    return samples


def _hashes(images: Embedded, kept: np.ndarray) -> list[str | None]:
    """Content hashes of the images that are kept, bool (images,)."""
    found: list[str | None] = [None] * len(kept)
    for batch in PartRows(open_output(images.output)).read(["item_index", "content_hash"]).batches:
        for number, content_hash in zip(*(one.to_pylist() for one in batch.columns), strict=True):
            found[number] = content_hash
    return [found[number] for number in np.flatnonzero(kept)]
