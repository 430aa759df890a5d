"""Evaluation of a model on a webdataset root, as `clip_benchmark eval`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from enum import StrEnum

import numpy as np

from clipfleet.errors import SourceError, UsageError
from clipfleet.evaluation.measuring import measure_classification, measure_multilabel, measure_retrieval
from clipfleet.evaluation.outcome import Evaluation, Measured
from clipfleet.evaluation.roots import CLASSNAMES, DatasetType, Root, Sample
from clipfleet.evaluation.vectors import Embedded, Embedder
from clipfleet.labels.metrics import zero_shot_classifier

Array = np.ndarray

DEFAULT_RECALLS = (5,)


class EvaluationTask(StrEnum):
    """What is measured, as CLIP_benchmark names it; `auto`: what the root is for."""

    AUTO = "auto"
    CLASSIFICATION = "zeroshot_classification"
    RETRIEVAL = "zeroshot_retrieval"


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
        measured, images, texts, counted = _retrieval(root, embedder, recalls)
    else:
        measured, images, texts, counted = _classification(root, embedder)
    options = embedder.options
    return Evaluation(
        source=root.uri, split=root.split, task=own, dataset=root.name, model=options.model,
        precision=options.precision, decode=options.decode, model_fingerprint=images.model_fingerprint,
        outputs={"images": images.output, "texts": texts.output}, measured=measured,
        failed=(*images.failed, *texts.failed), items_ok=counted,
    )  # fmt: skip


def _classification(root: Root, embedder: Embedder) -> tuple[Measured, Embedded, Embedded, Array]:
    names, templates = root.classnames(), root.templates()
    is_multi = root.kind is DatasetType.MULTILABEL
    truth = read_label_vectors(root, len(names)) if is_multi else read_labels(root, len(names))
    texts = embedder.texts(prompts_of(names, templates))
    _require_all(texts, "prompt")
    images = _images(root, embedder, len(truth))
    classifier = zero_shot_classifier(texts.features, len(names))
    measure = measure_multilabel if is_multi else measure_classification
    measured = measure(images.features[images.ok], classifier, truth[images.ok], names)
    return measured, images, texts, images.ok


def prompts_of(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """All prompts, class by class, as `metrics.zero_shot_classifier` takes their vectors."""
    return [template.replace("{c}", name) for name in names for template in templates]


def _retrieval(
    root: Root, embedder: Embedder, recalls: Sequence[int]
) -> tuple[Measured, Embedded, Embedded, Array]:
    captions = read_captions(root)
    texts = embedder.texts([text for each in captions for text in each])
    images = _images(root, embedder, len(captions))
    image_of_text = np.repeat(np.arange(len(captions)), [len(each) for each in captions])
    good_text = texts.ok & images.ok[image_of_text]
    good_image = np.zeros(len(captions), bool)
    good_image[image_of_text[good_text]] = True
    number = np.cumsum(good_image) - 1  # of an image among the good ones
    most = max(recalls)
    if most > good_image.sum():
        raise UsageError(f"{root.uri}: recall@{most} needs {most} images, and it has {good_image.sum()}")
    measured = measure_retrieval(
        images.features[good_image],
        texts.features[good_text],
        number[image_of_text[good_text]],
        recalls,
    )
    return measured, images, texts, good_image


def _images(root: Root, embedder: Embedder, expected: int) -> Embedded:
    images = embedder.images(root.source, root.state)
    if len(images.ok) != expected:
        raise UsageError(
            f"{images.output}: has {len(images.ok):,} rows for the {expected:,} images of {root.uri}: "
            "remove that folder, and run it again"
        )
    return images


def _require_all(texts: Embedded, what: str) -> None:
    if texts.failed:
        first = texts.failed[0]
        raise UsageError(f"{texts.output}: {what} {first.item_id}: {first.error_code}: {first.error_detail}")


def read_labels(root: Root, classes: int) -> Array:
    """Read the class of each image, int64 (items,), from the `.cls` beside it.

    Raises:
        SourceError: it is missing, not a number, or outside of the classes.
    """
    found = []
    for sample in root.samples(("cls",)):
        text = _member(sample, "cls").decode("ascii", "replace").strip()
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
            vector = np.load(io.BytesIO(_member(sample, "npy")), allow_pickle=False)
            is_good = vector.shape == (classes,) and bool(np.isin(vector, (0, 1)).all())
        except (ValueError, EOFError, TypeError, AttributeError):
            is_good = False
        if not is_good:
            raise SourceError(
                f"{sample.where}.npy: not a vector of 0 and 1 for the {classes:,} names of {CLASSNAMES}"
            )
        found.append(vector.astype(bool))
    return np.array(found, bool).reshape(-1, classes)


def read_captions(root: Root) -> list[list[str]]:
    """Read the captions of each image from the `.txt` beside it, one per line.

    Raises:
        SourceError: it is missing or empty.
    """
    found = []
    for sample in root.samples(("txt",)):
        lines = _member(sample, "txt").decode(errors="replace").splitlines()
        if not any(line.strip() for line in lines):
            raise SourceError(f"{sample.where}.txt: has no caption")
        found.append(lines)
    return found


def _member(sample: Sample, extension: str) -> bytes:
    if extension not in sample.texts:
        raise SourceError(f"{sample.where}: has no .{extension} beside the image")
    return sample.texts[extension]
