"""Evaluation of a model on a webdataset root, as `clip_benchmark eval`."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from clipfleet.contract.label_sets import short_hash
from clipfleet.errors import SourceError, UsageError
from clipfleet.evaluation.measuring import measure_classification, measure_multilabel, measure_retrieval
from clipfleet.evaluation.outcome import Evaluation, Measured
from clipfleet.evaluation.roots import CLASSNAMES, DatasetType, Root, Sample
from clipfleet.evaluation.vectors import Embedded, Embedder, FailedItem, VectorOrigin
from clipfleet.labels.metrics import zero_shot_classifier

Array = np.ndarray

DEFAULT_RECALLS = (5,)


class EvaluationTask(StrEnum):
    """What is measured, as CLIP_benchmark names it; `auto`: what the root is for."""

    AUTO = "auto"
    CLASSIFICATION = "zeroshot_classification"
    RETRIEVAL = "zeroshot_retrieval"


def task_named(name: str) -> EvaluationTask:
    """The task of this name. Raises `UsageError` with the names that there are."""
    if name not in list(EvaluationTask):
        raise UsageError(f"`task=` {name!r} is not one of {', '.join(EvaluationTask)}")
    return EvaluationTask(name)


def evaluate_root(
    root: Root,
    embedder: Embedder,
    *,
    task: EvaluationTask = EvaluationTask.AUTO,
    recalls: Sequence[int] = DEFAULT_RECALLS,
) -> Evaluation:
    """Evaluate a model on one split of a root.

    The truth is read and checked first, then images and prompts are embedded by jobs, see `Embedder`.

    Args:
        root: the split.
        embedder: the model, and where its vectors are kept.
        task: must be that of the root, or `auto`.
        recalls: the k of the recalls of a retrieval root.

    Raises:
        SourceError: the root is incomplete, or its truth is not about its classes.
        UsageError: the task is not that of the root, or no image could be embedded.
        WorldError: a job failed, or Redis or an output is unavailable.
    """
    own = EvaluationTask.RETRIEVAL if root.kind is DatasetType.RETRIEVAL else EvaluationTask.CLASSIFICATION
    if task not in (EvaluationTask.AUTO, own):
        raise UsageError(f"{root.uri}: its type is {root.kind}, so the task is {own}, not {task}")
    if own is EvaluationTask.RETRIEVAL:
        gathered = _retrieval(root, embedder, recalls)
    else:
        gathered = _classification(root, embedder)
    options = embedder.options
    return Evaluation(
        source=root.uri, split=root.split, task=own, dataset=root.name, model=options.model,
        precision=options.precision, decode=options.decode,
        model_fingerprint=gathered.images.model_fingerprint,
        outputs={"images": gathered.images.output, "texts": gathered.texts.output},
        items_ok=gathered.ok, measure=gathered.measure, measured=gathered.measure(gathered.ok),
        failed=(*gathered.images.failed, *gathered.failed_texts),
        truth_hash=short_hash([root.uri, root.split, root.state, recalls]),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Gathered:
    """Vectors of a root, and how its metrics are computed."""

    images: Embedded
    texts: Embedded
    ok: Array  # bool (images,)
    measure: Callable[[Array], Measured]  # takes such a mask
    failed_texts: tuple[FailedItem, ...] = ()


def _classification(root: Root, embedder: Embedder) -> _Gathered:
    names, templates = root.classnames(), root.templates()
    is_multi = root.kind is DatasetType.MULTILABEL
    truth = read_label_vectors(root, len(names)) if is_multi else read_labels(root, len(names))
    texts = embedder.texts(prompts_of(names, templates))
    images = embedded_images(root, embedder, len(truth))
    measure = measured_by(images, texts, names, truth)
    return _Gathered(images, texts, images.ok, measure)


def measured_by(
    images: Embedded, texts: Embedded, names: Sequence[str], truth: Array
) -> Callable[[Array], Measured]:
    """How the metrics of some items are computed.

    Args:
        images: of all items.
        texts: the prompts of all classes, see `prompts_of`.
        names: of the classes.
        truth: int (items,), or bool (items, classes) where an item may have several classes.

    Raises:
        UsageError: a prompt could not be embedded, or another model embedded the prompts.
    """
    require_prompts(texts, images.origin)
    classifier = zero_shot_classifier(texts.features, len(names))
    measure = measure_multilabel if truth.ndim > 1 else measure_classification
    return lambda mask: measure(images.of_items(mask), classifier, truth[mask], names)


def require_prompts(texts: Embedded, images: VectorOrigin) -> None:
    """Raise UsageError if a prompt could not be embedded, or if another model embedded the prompts."""
    if texts.failed:
        first = texts.failed[0]
        raise UsageError(f"{texts.output}: prompt {first.item_id}: {first.error_code}: {first.error_detail}")
    if texts.model_fingerprint != images.model_fingerprint:
        raise UsageError(
            f"{images.output} and {texts.output} are of different models "
            f"({images.model_fingerprint} and {texts.model_fingerprint}): remove {texts.output} and run it "
            f"again; if they differ then too, {images.output} is stale: remove it, and run its job again"
        )


def prompts_of(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """All prompts, class by class, as `metrics.zero_shot_classifier` takes their vectors."""
    return [template.replace("{c}", name) for name in names for template in templates]


def _retrieval(root: Root, embedder: Embedder, recalls: Sequence[int]) -> _Gathered:
    read = read_captions(root)
    captions = [lines for _, lines in read]
    texts = embedder.texts([text for each in captions for text in each])
    images = embedded_images(root, embedder, len(captions))
    image_of_text = np.repeat(np.arange(len(captions)), [len(each) for each in captions])
    ok = np.zeros(len(captions), bool)  # an image, and at least one of its captions
    ok[image_of_text[texts.ok]] = True
    ok &= images.ok
    if max(recalls) > ok.sum():
        raise UsageError(
            f"{root.uri}: recall@{max(recalls)} needs as many images, and there are {ok.sum():,}: "
            "give a lower `recall_k=`"
        )

    def measure(mask: Array) -> Measured:
        good = texts.ok & mask[image_of_text]
        number = np.cumsum(mask) - 1  # of an image among those of the mask
        return measure_retrieval(
            images.features[mask], texts.features[good], number[image_of_text[good]], recalls
        )

    return _Gathered(images, texts, ok, measure, tuple(_failed_captions(read, texts)))


def _failed_captions(captions: Sequence[tuple[str, list[str]]], texts: Embedded) -> Iterator[FailedItem]:
    """The captions without a vector: the jobs know texts only, each one once."""
    distinct = list(dict.fromkeys(line for _, lines in captions for line in lines))
    reasons = {distinct[one.item_index]: one for one in texts.failed}
    for image, (where, lines) in enumerate(captions):
        for number, line in enumerate(lines, 1):
            if line in reasons:
                yield replace(reasons[line], item_index=image, item_id=f"{where}.txt, line {number}")


def embedded_images(root: Root, embedder: Embedder, expected: int) -> Embedded:
    """Embed the images of a root, one row each.

    Raises:
        UsageError: none could be embedded, or the rows are not those of the `expected` images.
        WorldError: see `Embedder.images`.
    """
    images = embedder.images(root.source, root.state)
    if len(images.ok) != expected:
        raise UsageError(
            f"{images.output}: has {len(images.ok):,} rows for the {expected:,} images of {root.uri}: "
            "remove that folder, and run it again"
        )
    return images


def read_labels(root: Root, classes: int) -> Array:
    """Read the class of each image, int64 (items,), from the `.cls` beside it.

    Raises:
        SourceError: it is missing, not a number, or outside of the classes.
    """
    found = []
    for sample in root.samples(("cls",)):
        text = member(sample, "cls").decode("ascii", "replace").strip()
        try:
            label = int(text)
        except ValueError:
            raise SourceError(f"{sample.where}.cls: {text[:40]!r} is not the number of a class") from None
        if not 0 <= label < classes:
            raise SourceError(
                f"{sample.where}.cls: there is no class {label}: {CLASSNAMES} has {classes:,} names, "
                f"0 to {classes - 1}"
            )
        found.append(label)
    return np.array(found, np.int64)


def read_label_vectors(root: Root, classes: int) -> Array:
    """Read the classes of each image, bool (items, classes), from the `.npy` beside it.

    Raises:
        SourceError: it is missing, or not a vector of 0 and 1 with an entry for each class.
    """
    found = []
    for sample in root.samples(("npy",)):
        try:
            vector = np.load(io.BytesIO(member(sample, "npy")), allow_pickle=False)
            is_good = vector.shape == (classes,) and bool(np.isin(vector, (0, 1)).all())
        except (ValueError, EOFError, TypeError, AttributeError):
            is_good = False
        if not is_good:
            raise SourceError(
                f"{sample.where}.npy: not a vector of 0 and 1 for the {classes:,} names of {CLASSNAMES}"
            )
        found.append(vector.astype(bool))
    return np.array(found, bool).reshape(-1, classes)


def read_captions(root: Root) -> list[tuple[str, list[str]]]:
    """Read the captions of each image from the `.txt` beside it, one per line; shard and key come first.

    Raises:
        SourceError: it is missing or empty.
    """
    found = []
    for sample in root.samples(("txt",)):
        lines = member(sample, "txt").decode(errors="replace").splitlines()
        if not any(line.strip() for line in lines):
            raise SourceError(f"{sample.where}.txt: has no caption")
        found.append((sample.where, lines))
    return found


def member(sample: Sample, extension: str) -> bytes:
    """Content beside an image.

    Raises:
        SourceError: there is none with this extension.
    """
    if extension not in sample.texts:
        raise SourceError(f"{sample.where}: has no .{extension} beside the image")
    return sample.texts[extension]
