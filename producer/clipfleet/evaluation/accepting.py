"""Metrics of label sets with thresholds: what was accepted against what is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from clipfleet.evaluation.measuring import RANKING_RESAMPLES, confusion_cells, share_interval
from clipfleet.evaluation.outcome import ClassRow, Interval, Measured
from clipfleet.evaluation.truth import NONE
from clipfleet.labels.comparing import RESAMPLES
from clipfleet.labels.intervals import wilson
from clipfleet.labels.metrics import auroc, average_precision, mean_per_class_recall, share_within

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class AcceptedRows:
    """Decisions on items."""

    truth: Array  # bool (items, labels)
    accepted: Array  # bool (items, labels)
    best_accepted: Array  # int (items,): the label; the number of labels where none was accepted
    best_score: Array  # float32 (items,): of the best label, accepted or not
    scores: Array | None  # float32 (items, labels); None if the rows do not have all of them

    def kept(self, mask: Array) -> AcceptedRows:
        """Those of some items."""
        scores = None if self.scores is None else self.scores[mask]
        return AcceptedRows(
            self.truth[mask], self.accepted[mask], self.best_accepted[mask], self.best_score[mask], scores
        )


def measure_accepted(rows: AcceptedRows, names: Sequence[str], *, has_none: bool) -> Measured:
    """Measure decisions by label and over all labels; of a set with `none` also which label was chosen.

    Precision, recall and F1 count pairs of an item and a label. `none_auroc` is how well the best score
    separates items that have a label from those that have none.
    """
    notes: list[str] = []
    resampled: dict[str, Callable[[Array], float]] = {}
    intervals: dict[str, Interval] = {}
    metrics: dict[str, float | None] = {}
    items = len(rows.truth)
    has_label: Array = np.asarray(rows.truth.any(axis=1))
    if has_none:
        true = np.where(has_label, rows.truth.argmax(axis=1), len(names))
        right = true == rows.best_accepted
        resampled["acc1"] = partial(share_within, np.where(right, 0, 1), 1)
        resampled["mean_per_class_recall"] = partial(
            mean_per_class_recall, true, rows.best_accepted, len(names) + 1
        )
        intervals["acc1"] = wilson(int(right.sum()), items)
        metrics |= {"acc1": None, "acc5": None}  # in this order
        notes.append("acc5 is null: a label set with `none` chooses one label, or none")
    right_pairs, accepted, true_pairs = (
        one.sum(axis=1) for one in (rows.truth & rows.accepted, rows.accepted, rows.truth)
    )
    resampled |= {
        "precision": partial(_ratio, right_pairs, accepted),
        "recall": partial(_ratio, right_pairs, true_pairs),
        "f1": partial(_ratio, 2 * right_pairs, accepted + true_pairs),
    }
    if has_none:
        resampled["none_auroc"] = partial(_auroc, rows.best_score, has_label)
    if rows.scores is not None:
        resampled["mean_average_precision"] = partial(_mean_average_precision, rows.scores, rows.truth)
    else:
        metrics["mean_average_precision"] = None
        notes.append(
            "mean_average_precision is null: the rows do not have the scores of all labels; "
            f"label with a top k of {len(names)}"
        )
    for name, below in (("precision", accepted), ("recall", true_pairs)):
        if below.any():
            intervals[name] = wilson(int(right_pairs.sum()), int(below.sum()))
    once = np.ones(items, np.int64)
    undefined = _undefined(has_label)
    for name, statistic in list(resampled.items()):
        value = statistic(once)
        metrics[name] = None if np.isnan(value) else value
        if np.isnan(value):
            del resampled[name]
            notes.append(f"{name} is null: {undefined[name]}")
        elif name not in intervals:
            is_sorting = name in ("none_auroc", "mean_average_precision")
            intervals[name] = share_interval(statistic, items, RANKING_RESAMPLES if is_sorting else RESAMPLES)
    return Measured(
        metrics, intervals, items, classes=_rows(rows, names), notes=tuple(notes), resampled=resampled,
        confusion=confusion_cells(true, rows.best_accepted, [*names, NONE]) if has_none else (),
        right=right if has_none else None,
    )  # fmt: skip


def _undefined(has_label: Array) -> dict[str, str]:
    """Why a metric has no value, if it has none."""
    return {
        "precision": "no label was accepted",
        "recall": "no item shows a label",
        "f1": "no label was accepted, and no item shows one",
        "none_auroc": "each item shows a label" if has_label.any() else "no item shows a label",
    }


def _rows(rows: AcceptedRows, names: Sequence[str]) -> tuple[ClassRow, ...]:
    found = []
    for index, name in enumerate(names):
        truth, accepted = rows.truth[:, index], rows.accepted[:, index]
        true, guessed, right = int(truth.sum()), int(accepted.sum()), int((truth & accepted).sum())
        found.append(
            ClassRow(
                index=index, label=name, n=true, predicted=guessed,
                recall=right / true if true else None, recall_interval=wilson(right, true) if true else None,
                precision=right / guessed if guessed else None,
                precision_interval=wilson(right, guessed) if guessed else None,
                f1=2 * right / (true + guessed) if true + guessed else None,
                average_precision=None if rows.scores is None
                else average_precision(rows.scores[:, index], truth),
            )
        )  # fmt: skip
    return tuple(found)


def _ratio(above: Array, below: Array, weights: Array) -> float:
    total = float((below * weights).sum())
    return float((above * weights).sum()) / total if total else float("nan")


def _auroc(scores: Array, positive: Array, weights: Array) -> float:
    return auroc(np.repeat(scores, weights), np.repeat(positive, weights))


def _mean_average_precision(scores: Array, truth: Array, weights: Array) -> float:
    labels = range(truth.shape[1])
    return float(np.mean([average_precision(scores[:, k], truth[:, k], weights) for k in labels]))
