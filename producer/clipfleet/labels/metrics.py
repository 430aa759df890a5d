"""Metrics of zero-shot evaluation: pure functions, arrays in, arrays and numbers out. Needs numpy.

Definitions are those of CLIP_benchmark (`clip_benchmark/metrics/`) where it has the metric. Of equal scores
the first class, image or text wins. `weights` are multiplicities of the items, as `comparing.bootstrap` draws
them; None: each item once. Matrices of scores exist a slice at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

Array = np.ndarray  # shapes and types are said where one is used

TOP_FIVE = 5  # acc5 has no meaning with fewer classes
_SCORES_AT_ONCE = 16_000_000  # 64 MB of float32


@dataclass(frozen=True, slots=True)
class Ranks:
    """How each item was classified."""

    predicted: Array  # int64 (items,): the class with the highest score
    rank: Array  # int64 (items,): of the true class; 0: it has the highest score


@dataclass(frozen=True, slots=True)
class RetrievalRanks:
    """Ranks of what belongs together; 0 is the best."""

    image_of_text: Array  # int64 (texts,): of a text's image among all images
    text_of_image: Array  # int64 (images,): of an image's best own text among all texts


def unit(vectors: Array) -> Array:
    """Divide each vector (n, d) by its length, in float32; vectors of length 0 become NaN."""
    single = np.asarray(vectors, dtype=np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        normalised: Array = single / np.linalg.norm(single, axis=1, keepdims=True)
    return normalised


def zero_shot_classifier(prompt_features: Array, classes: int) -> Array:
    """Mean of each class's normalised prompts, normalised again, as open_clip's `zero_shot_classifier.py`.

    Args:
        prompt_features: (classes * templates, d), the templates of the first class first.
        classes: their number.

    Returns:
        float32 (classes, d).
    """
    d = prompt_features.shape[1]
    return unit(unit(prompt_features).reshape(classes, -1, d).mean(axis=1))


def slices(rows: int, columns: int) -> Iterator[slice]:
    """Consecutive slices of rows, so that one slice of a matrix with so many columns is of bounded size."""
    step = max(1, _SCORES_AT_ONCE // max(1, columns))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def classify(images: Array, classes: Array, truth: Array) -> Ranks:
    """Score images against a classifier and rank their true classes.

    Args:
        images: float32 (items, d).
        classes: float32 (classes, d), see `zero_shot_classifier`.
        truth: int (items,), indexes of classes.
    """
    predicted, rank = [], []
    for part in slices(len(images), len(classes)):
        scores = images[part] @ classes.T
        predicted.append(scores.argmax(axis=1))
        rank.append(ranks_of(scores, truth[part]))
    return Ranks(_joined(predicted), _joined(rank))


def ranks_of(scores: Array, wanted: Array) -> Array:
    """Rank of one column of each row: how many scores (n, m) come before that of column `wanted` (n,)."""
    own = np.take_along_axis(scores, wanted[:, None], axis=1)
    is_before = np.arange(scores.shape[1])[None, :] < wanted[:, None]
    count: Array = ((scores > own) | ((scores == own) & is_before)).sum(axis=1)
    return count


def share_within(rank: Array, k: int, weights: Array | None = None) -> float:
    """Share of ranks among the best k: `acc1`, `acc5` and `..._retrieval_recall@k` of CLIP_benchmark."""
    return _mean(rank < k, weights)


def mean_per_class_recall(
    truth: Array, predicted: Array, classes: int, weights: Array | None = None
) -> float:
    """Mean recall of the classes that the truth has, as scikit-learn's `balanced_accuracy_score`."""
    each = np.bincount(truth, weights, classes)
    hits = np.bincount(truth, (truth == predicted) * (1.0 if weights is None else weights), classes)
    present = each > 0
    return float((hits[present] / each[present]).mean()) if present.any() else float("nan")


@dataclass(frozen=True, slots=True)
class ClassCounts:
    """Counts of each class, int64 (classes,)."""

    true: Array  # items of this class
    predicted: Array  # items classified as it
    right: Array  # both


def class_counts(truth: Array, predicted: Array, classes: int) -> ClassCounts:
    """Count items by class; recall is right / true, precision right / predicted."""
    return ClassCounts(
        np.bincount(truth, minlength=classes),
        np.bincount(predicted, minlength=classes),
        np.bincount(truth[truth == predicted], minlength=classes),
    )


def confusion(truth: Array, predicted: Array, classes: int) -> list[tuple[int, int, int]]:
    """The cells of the confusion matrix that are not 0, the highest first: true class, predicted, count."""
    cells, counts = np.unique(truth * classes + predicted, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [
        (int(cell // classes), int(cell % classes), int(count))
        for cell, count in zip(cells[order], counts[order], strict=True)
    ]


def average_precision(scores: Array, truth: Array, weights: Array | None = None) -> float:
    """Average precision of one class, not interpolated: 0 for a class without positives.

    `sum(precision at the positives) / positives`, by descending score; of weights only the ratios matter.

    Args:
        scores: (items,).
        truth: bool (items,).
        weights: (items,).
    """
    order = np.argsort(-scores, kind="stable")
    return precision_of_ranking(truth[order], None if weights is None else weights[order])


def precision_of_ranking(truth: Array, weights: Array | None = None) -> float:
    """Like `average_precision`, of items in their order."""
    each = np.ones(len(truth)) if weights is None else np.asarray(weights, dtype=np.float64)
    positive = np.where(truth, each, 0.0)
    seen = np.cumsum(each)
    precision = np.divide(np.cumsum(positive), seen, out=np.zeros_like(seen), where=seen > 0)
    total = positive.sum()
    return float((precision * positive).sum() / total) if total > 0 else 0.0


def rankings(images: Array, classes: Array) -> Iterator[Array]:
    """For each class the items by descending score, int64 (items,)."""
    for part in slices(len(classes), len(images)):
        for scores in classes[part] @ images.T:
            yield np.argsort(-scores, kind="stable")


def retrieve(images: Array, texts: Array, image_of_text: Array) -> RetrievalRanks:
    """Rank images for texts, and texts for images, as `zeroshot_retrieval.py` of CLIP_benchmark.

    Args:
        images: float32 (images, d).
        texts: float32 (texts, d).
        image_of_text: int (texts,), ascending: the image that each text belongs to; each image has a text.
    """
    first = np.searchsorted(image_of_text, np.arange(len(images) + 1))
    by_text = [
        ranks_of(texts[part] @ images.T, image_of_text[part]) for part in slices(len(texts), len(images))
    ]
    by_image = []
    for part in slices(len(images), len(texts)):
        scores = images[part] @ texts.T
        best = np.array(
            [
                first[number] + row[first[number] : first[number + 1]].argmax()
                for number, row in zip(range(part.start, part.stop), scores, strict=True)
            ]
        )
        by_image.append(ranks_of(scores, best))
    return RetrievalRanks(_joined(by_text), _joined(by_image))


def auroc(scores: Array, positive: Array) -> float:
    """Area under the ROC curve; equal scores count half. NaN unless there are positives and negatives.

    Args:
        scores: (items,).
        positive: bool (items,).
    """
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank = last - (counts - 1) / 2  # of equal scores, counted from 1
    total = mean_rank[inverse][positive].sum()
    return float((total - positives * (positives + 1) / 2) / (positives * negatives))


def _mean(values: Array, weights: Array | None) -> float:
    if weights is None:
        return float(values.mean()) if len(values) else float("nan")
    total = weights.sum()
    return float((values * weights).sum() / total) if total else float("nan")


def _joined(parts: list[Array]) -> Array:
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
