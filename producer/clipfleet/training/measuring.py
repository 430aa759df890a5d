"""Figures of a head that answers for several labels, each known of some items only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipfleet.contract.heads import DEFAULT_HEAD_THRESHOLD
from clipfleet.evaluation.outcome import ClassRow, Interval, Measured
from clipfleet.labels.intervals import wilson
from clipfleet.labels.metrics import average_precision

Array = np.ndarray

_WEIGHTED = (
    "a mark counts for the items that were not drawn: the figures are about all rows, not about the marks"
)


@dataclass(frozen=True, slots=True)
class LabelAnswers:
    """What a head says about one label of items whose truth is known."""

    items: Array  # int64 (n,): indexes
    truth: Array  # bool (n,)
    score: Array  # float32 (n,): probabilities
    weights: Array  # float64 (n,): how many items each stands for

    @property
    def accepted(self) -> Array:
        """Bool (n,)."""
        found: Array = self.score >= DEFAULT_HEAD_THRESHOLD
        return found


def measure_labels(answers: Sequence[LabelAnswers], names: Sequence[str]) -> Measured:
    """Measure what is accepted at a score of 0.5, by label and over all pairs of an item and a label.

    `mean_average_precision` is about the order of the items of each label. The numbers of items are those of
    the marks; shares are weighted, and their intervals are Wilson's for as many items as the weights are
    worth, see `share`.
    """
    rows = tuple(_row(index, name, one) for index, (name, one) in enumerate(zip(names, answers, strict=True)))
    truth, accepted, weights = (
        np.concatenate([getattr(one, name) for one in answers]) for name in ("truth", "accepted", "weights")
    )
    recall, of_recall = share(accepted[truth], weights[truth])
    metrics: dict[str, float | None] = {"precision": None, "recall": recall}
    intervals: dict[str, Interval] = {"recall": of_recall}
    if accepted.any():
        metrics["precision"], intervals["precision"] = share(truth[accepted], weights[accepted])
    metrics["f1"] = _f1(truth, accepted, weights)
    metrics["mean_average_precision"] = float(np.mean([row.average_precision for row in rows]))
    notes = [] if accepted.any() else ["precision is null: no label was accepted"]
    if len(np.unique(weights)) > 1:
        notes.append(_WEIGHTED)
    items = len(np.unique(np.concatenate([one.items for one in answers])))
    return Measured(metrics, intervals, items, classes=rows, notes=tuple(notes))


def share(chosen: Array, weights: Array) -> tuple[float, Interval]:
    """The weighted share of the chosen items, and its interval.

    The interval is Wilson's for `sum(w)^2 / sum(w^2)` items: with these weights the mean has the variance
    that it has over so many items that count the same (L. Kish, Survey Sampling, 1965, section 11.2).

    Args:
        chosen: bool (n,), n at least 1.
        weights: float64 (n,), positive.
    """
    found = min(float(weights[chosen].sum() / weights.sum()), 1.0)
    worth = max(float(weights.sum() ** 2 / (weights**2).sum()), 1.0)
    return found, wilson(found * worth, worth)


def _f1(truth: Array, accepted: Array, weights: Array) -> float:
    right = float(weights[truth & accepted].sum())
    return 2 * right / float(weights[truth].sum() + weights[accepted].sum())


def _row(index: int, name: str, one: LabelAnswers) -> ClassRow:
    accepted, truth = one.accepted, one.truth
    recall, recall_interval = share(accepted[truth], one.weights[truth])
    precision, precision_interval = None, None
    if accepted.any():
        precision, precision_interval = share(truth[accepted], one.weights[accepted])
    return ClassRow(
        index=index, label=name, n=int(truth.sum()), predicted=int(accepted.sum()),
        recall=recall, recall_interval=recall_interval,
        precision=precision, precision_interval=precision_interval,
        f1=_f1(truth, accepted, one.weights),
        average_precision=average_precision(one.score, truth, one.weights),
    )  # fmt: skip
