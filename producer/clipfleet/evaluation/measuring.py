"""Metrics, intervals and tables of one task, from vectors and truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from clipfleet.evaluation.outcome import Cell, ClassRow, GroupRow, Interval, Measured
from clipfleet.labels.comparing import RESAMPLES, bootstrap
from clipfleet.labels.intervals import wilson
from clipfleet.labels.metrics import (
    TOP_FIVE,
    Ranks,
    class_counts,
    classify,
    confusion,
    mean_per_class_recall,
    precision_of_ranking,
    rankings,
    retrieve,
    share_within,
)

Array = np.ndarray

RANKING_RESAMPLES = 200  # each one goes through all items of all classes
_SORTING = ("mean_average_precision", "auroc", "mean_absolute_error", "pearson", "spearman")
TOO_FEW_CLASSES = f"acc5 is null: there are fewer than {TOP_FIVE} classes"


def measure_classification(images: Array, classifier: Array, truth: Array, names: Sequence[str]) -> Measured:
    """Measure a single-label classification by scores of all classes.

    Args:
        images: float32 (items, d).
        classifier: float32 (classes, d).
        truth: int (items,).
        names: of the classes.
    """
    ranks = classify(images, classifier, truth)
    notes = () if len(names) >= TOP_FIVE else (TOO_FEW_CLASSES,)
    return classification_measured(ranks, truth, names, notes)


def classification_measured(
    ranks: Ranks, truth: Array, names: Sequence[str], notes: Sequence[str] = ()
) -> Measured:
    """Measure a classification by the ranks of the true classes; `notes` say why acc5 is null, if it is."""
    classes = len(names)
    resampled: dict[str, Callable[[Array], float]] = {
        "acc1": partial(share_within, ranks.rank, 1),
        "mean_per_class_recall": partial(mean_per_class_recall, truth, ranks.predicted, classes),
    }
    metrics: dict[str, float | None] = {"acc1": share_within(ranks.rank, 1), "acc5": None}
    intervals = {"acc1": _wilson_of(ranks.rank < 1)}
    if not notes:
        metrics["acc5"] = share_within(ranks.rank, TOP_FIVE)
        intervals["acc5"] = _wilson_of(ranks.rank < TOP_FIVE)
        resampled["acc5"] = partial(share_within, ranks.rank, TOP_FIVE)
    metrics["mean_per_class_recall"] = mean_per_class_recall(truth, ranks.predicted, classes)
    intervals["mean_per_class_recall"] = share_interval(resampled["mean_per_class_recall"], len(truth))
    return Measured(
        metrics=metrics,
        intervals=intervals,
        items=len(truth),
        classes=class_rows(truth, ranks.predicted, names),
        confusion=confusion_cells(truth, ranks.predicted, names),
        notes=tuple(notes),
        right=ranks.rank < 1,
        resampled=resampled,
    )


def class_rows(truth: Array, predicted: Array, names: Sequence[str]) -> tuple[ClassRow, ...]:
    """The table of classes; `names` are those of the indexes in `truth` and `predicted`."""
    counts = class_counts(truth, predicted, len(names))
    rows = zip(names, counts.true.tolist(), counts.predicted.tolist(), counts.right.tolist(), strict=True)
    return tuple(
        ClassRow(
            index=index, label=name, n=true, predicted=guessed,
            recall=right / true if true else None, recall_interval=wilson(right, true) if true else None,
            precision=right / guessed if guessed else None,
            precision_interval=wilson(right, guessed) if guessed else None,
        )
        for index, (name, true, guessed, right) in enumerate(rows)
    )  # fmt: skip


def class_groups(rows: Sequence[ClassRow], groups: Mapping[str, str]) -> tuple[GroupRow, ...]:
    """Means of the rows by group; `groups` names the group of a label, if it has one."""
    found = []
    for group in dict.fromkeys(groups.values()):
        own = [row for row in rows if groups.get(row.label) == group]
        found.append(
            GroupRow(
                group,
                len(own),
                _mean_of([row.recall for row in own]),
                _mean_of([row.precision for row in own]),
                _mean_of([row.average_precision for row in own]),
            )
        )
    return tuple(found)


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def confusion_cells(truth: Array, predicted: Array, names: Sequence[str]) -> tuple[Cell, ...]:
    """The cells of the confusion matrix that are not 0, the highest first."""
    cells = confusion(truth, predicted, len(names))
    return tuple(Cell(names[true], names[guessed], count, true, guessed) for true, guessed, count in cells)


def measure_multilabel(images: Array, classifier: Array, truth: Array, names: Sequence[str]) -> Measured:
    """Measure the order of the items in each class; `truth` is bool (items, classes)."""
    orders = [order.astype(np.int32) for order in rankings(images, classifier)]
    each = [precision_of_ranking(truth[order, index]) for index, order in enumerate(orders)]
    value = float(np.mean(each))
    resampled = {"mean_average_precision": partial(_weighted_precision, orders, truth)}
    return Measured(
        metrics={"mean_average_precision": value},
        intervals={
            "mean_average_precision": share_interval(
                resampled["mean_average_precision"], len(truth), resamples=RANKING_RESAMPLES
            )
        },
        items=len(truth),
        classes=tuple(
            ClassRow(index, name, n=int(truth[:, index].sum()), predicted=0, average_precision=each[index])
            for index, name in enumerate(names)
        ),
        resampled=resampled,
    )


def measure_retrieval(images: Array, texts: Array, image_of_text: Array, at: Sequence[int]) -> Measured:
    """Measure the search of images by texts and of texts by images, see `metrics.retrieve`.

    An interval resamples images, each with its texts: texts of one image resemble each other.
    """
    ranks = retrieve(images, texts, image_of_text)
    metrics: dict[str, float | None] = {}
    intervals: dict[str, Interval] = {}
    resampled: dict[str, Callable[[Array], float]] = {}
    for k in at:
        of_images, of_texts = f"image_retrieval_recall@{k}", f"text_retrieval_recall@{k}"
        metrics |= {
            of_images: share_within(ranks.image_of_text, k),
            of_texts: share_within(ranks.text_of_image, k),
        }
        resampled |= {
            of_images: partial(_weighted_image_recall, ranks.image_of_text, image_of_text, k),
            of_texts: partial(share_within, ranks.text_of_image, k),
        }
        intervals |= {
            of_images: share_interval(resampled[of_images], len(images)),
            of_texts: _wilson_of(ranks.text_of_image < k),
        }
    return Measured(metrics, intervals, len(images), resampled=resampled)


def share_interval(statistic: Callable[[Array], float], items: int, resamples: int = RESAMPLES) -> Interval:
    """95 % interval of a metric between 0 and 1, see `bootstrap`."""
    low, high = bootstrap(statistic, items, resamples=resamples)
    return max(low, 0.0), min(high, 1.0)


def difference_interval(
    one: Callable[[Array], float], other: Callable[[Array], float], metric: str, items: int
) -> Interval:
    """95 % interval of the difference of a metric between two evaluations of the same items."""
    resamples = RANKING_RESAMPLES if metric.endswith(_SORTING) else RESAMPLES
    return bootstrap(lambda weights: one(weights) - other(weights), items, resamples=resamples)


def _wilson_of(hits: Array) -> Interval:
    return wilson(int(hits.sum()), len(hits))


def _weighted_precision(orders: Sequence[Array], truth: Array, weights: Array) -> float:
    each = [precision_of_ranking(truth[order, k], weights[order]) for k, order in enumerate(orders)]
    return float(np.mean(each))


def _weighted_image_recall(rank: Array, image_of_text: Array, k: int, weights: Array) -> float:
    return share_within(rank, k, weights[image_of_text])
