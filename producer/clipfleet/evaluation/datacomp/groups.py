"""Metrics of sets whose items have groups, as DataComp and WILDS define them: arrays in, numbers out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Array = np.ndarray
Metrics = dict[str, float | None]


def by_group(hits: Array, groups: Mapping[str, Array], name: str = "acc", worst: str = "wg") -> Metrics:
    """Accuracy of all items and of each group, with counts; without items it is None, and no worst group.

    Args:
        hits: bool (items,).
        groups: values of one or more fields, each int (items,) from 0; a group for each combination of values
            up to the highest of each field.
        name: of the metric.
        worst: ending of the name of the worst group's.
    """
    metrics: Metrics = {f"{name}_avg": _mean(hits)}
    sizes = [int(values.max()) + 1 if len(values) else 0 for values in groups.values()]
    found: list[float] = []
    for cell in np.ndindex(*reversed(sizes)):
        # The last field varies slowest and is named first.
        chosen = dict(zip(reversed(list(groups)), cell, strict=True))
        inside = np.logical_and.reduce([groups[field] == value for field, value in chosen.items()])
        group = "_".join(f"{field}:{value}" for field, value in chosen.items())
        count = int(inside.sum())
        metrics[f"{name}_{group}"] = _mean(hits[inside]) if count else None
        metrics[f"count_{group}"] = float(count)
        if count:
            found.append(_mean(hits[inside]))
    metrics[f"{name}_{worst}"] = min(found, default=0.0)
    return metrics


def macro(truth: Array, predicted: Array) -> Metrics:
    """Recall and F1, each the mean over the classes of the truth, as scikit-learn's with these labels."""
    recalls, scores = [], []
    for label in np.unique(truth):
        true, guessed = truth == label, predicted == label
        right = int((true & guessed).sum())
        recalls.append(right / int(true.sum()))
        scores.append(2 * right / int(true.sum() + guessed.sum()))
    return {"recall-macro_all": float(np.mean(recalls)), "F1-macro_all": float(np.mean(scores))}


def jaccard(scores: Array, associated: Array) -> float:
    """Intersection over union of the `associated`, bool (candidates,), and as many of the best `scores`."""
    chosen = np.zeros(len(scores), bool)
    wanted = int(associated.sum())
    chosen[np.argsort(scores, kind="stable")[len(scores) - wanted :]] = True
    union = int((chosen | associated).sum())
    return int((chosen & associated).sum()) / union if union else 0.0


def jaccard_by_size(values: Sequence[float], candidates: Sequence[int]) -> Metrics:
    """Mean Jaccard index of WinoGAViL's instances by number of candidates; None where there are none."""
    each, size = np.array(values, float), np.array(candidates)
    chosen = {
        "avg_jaccard_score": size > 0, "jaccard_score_5": size == 5, "jaccard_score_6": size == 6,
        "jaccard_score_10": size == 10, "jaccard_score_12": size == 12, "jaccard_score_5-6": size <= 6,
        "jaccard_score_10-12": size >= 10,
    }  # fmt: skip
    return {name: _mean(each[inside]) if inside.any() else None for name, inside in chosen.items()}


def _mean(values: Array) -> float:
    return float(values.mean())
