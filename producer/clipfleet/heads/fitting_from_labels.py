"""Fit a head that begins at the weights of a zero-shot classifier, for few labelled items.

With few items the best guess is what the names of the labels say. Weights are drawn towards `a` times the
vectors of the prompts: it minimises `sum(weight * cross-entropy) + |W - a * W_text|^2 / (2 c)`. The weakest c
within one standard error of the best is taken: a head leaves zero-shot when the items show that it should.
A bias is drawn towards 0 in the same way where labels compete. Where each label is answered for by itself the
bias is free: scores of CLIP say more and less, not yes and no. Needs numpy and scipy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipfleet.heads.cross_validation import (
    STRENGTHS,
    Layer,
    Problem,
    Solver,
    judged_folds,
    log_sum_exp,
    losses_of,
    mean_loss,
)
from clipfleet.heads.fitting import MOST_STEPS, SolverOf, scaled, threads_for, tolerance_for

Array = np.ndarray

# The a that are tried. CLIP's own logit scale is at most 100; for a few broad labels less fits better.
SCALES = (2.0, 5.0, 10.0, 20.0, 30.0, 50.0, 100.0)
UNMOVED = 1e-6  # a strength that leaves the weights where they begin
_ANSWERS = 1 << 22  # logits at a time


@dataclass(frozen=True, slots=True)
class FromTexts:
    """A layer that begins at the weights of texts, see `Solver`."""

    texts: Array  # float64 (classes, d): W_text
    scale: float  # a
    has_free_bias: bool  # else it is drawn towards 0
    errors: float = 1.0

    @property
    def strengths(self) -> Sequence[float]:
        return (UNMOVED, *STRENGTHS)

    def solve(self, problem: Problem, c: float, warm: Layer | None) -> Layer:
        from scipy.optimize import minimize

        classes, d = problem.classes, problem.features.shape[1]
        # The change of the weights comes first, then the bias; so many numbers are drawn towards 0.
        held = classes * d
        drawn = held if self.has_free_bias else held + classes
        counts = np.ones(len(problem.truth)) if problem.weights is None else problem.weights
        start = self.scale * self.texts

        def loss(flat: Array) -> tuple[float, Array]:
            layer = Layer(start + flat[:held].reshape(classes, d), flat[held:])
            value, gradient = _value_and_gradient(layer, problem, counts)
            gradient[:drawn] += flat[:drawn] / c
            value += float(flat[:drawn] @ flat[:drawn]) / (2 * c)
            return value / len(counts), gradient / len(counts)

        begin = np.zeros(held + classes)
        if warm is not None:
            begin = np.concatenate([(warm.weight - start).ravel(), warm.bias])
        options: dict[str, Any] = {"maxiter": MOST_STEPS, "gtol": tolerance_for(problem)}
        found = minimize(loss, begin, jac=True, method="L-BFGS-B", options=options)
        weight = start + found.x[:held].reshape(classes, d)
        return Layer(weight, found.x[held:], is_minimum=found.nit < MOST_STEPS)


def _value_and_gradient(layer: Layer, problem: Problem, counts: Array) -> tuple[float, Array]:
    """Sum of the losses, and its gradient as one row; a slice of the items at a time."""
    value, weight, bias = 0.0, np.zeros_like(layer.weight), np.zeros_like(layer.bias)
    step = max(1, _ANSWERS // problem.classes)
    for first in range(0, len(counts), step):
        part = slice(first, first + step)
        features, truth, count = problem.features[part], problem.truth[part], counts[part]
        rows = np.arange(len(truth))
        slope = layer.logits(features)
        own = slope[rows, truth]
        highest = slope.max(axis=1, keepdims=True)
        np.exp(np.subtract(slope, highest, out=slope), out=slope)
        total = slope.sum(axis=1, keepdims=True)
        value += float(count @ (highest[:, 0] + np.log(total[:, 0]) - own))
        slope *= count[:, None] / total
        slope[rows, truth] -= count
        weight += slope.T @ features
        bias += slope.sum(axis=0)
    return value, np.concatenate([weight.ravel(), bias])


def from_texts(
    features: Array, truth: Array, known: Array | None, texts: Array, *, seed: int = 0,
    weights: Array | None = None, groups: Array | None = None,
) -> SolverOf:  # fmt: skip
    """The solver of heads that begin at the weights of texts, with the a that fits the items best.

    Args:
        features: (items, d), of length 1.
        truth: int (items,), or bool (items, labels) of a multilabel head.
        known: of a multilabel head, see `fit_multilabel`.
        texts: float (labels, d), of length 1, see `metrics.zero_shot_classifier`.
        seed: of the folds.
        weights: see `fit_classifier` or `fit_multilabel`.
        groups: see `fit_classifier`.
    """
    start = np.asarray(texts, np.float64)
    if known is None:
        problem = Problem(features, truth, len(start), scaled(weights))
        solver = FromTexts(start, _scale_of_classes(problem, start, seed), has_free_bias=False)
        return lambda _: solver

    def of_label(label: int | None) -> Solver:
        if label is None:
            raise ValueError("a multilabel head has a layer for each label")
        items = np.flatnonzero(known[:, label])
        counting = None if weights is None else scaled(weights[items, label])
        problem = Problem(features[items], truth[items, label].astype(np.int64), 2, counting)
        pair = np.stack([np.zeros_like(start[label]), start[label]])
        own = None if groups is None else groups[items]
        return FromTexts(pair, _scale_of_label(problem, pair, seed, own), has_free_bias=True)

    return of_label


def _scale_of_classes(problem: Problem, texts: Array, seed: int) -> float:
    """The a with the lowest loss where weights and bias stay at their start: nothing else is fitted."""
    judged, _ = judged_folds(problem, seed)
    some = problem.of_items(judged)
    with threads_for(problem.features):
        cosines = some.features @ texts.T
        return min(SCALES, key=lambda scale: mean_loss(cosines * scale, some))


def _scale_of_label(problem: Problem, texts: Array, seed: int, groups: Array | None) -> float:
    """The a with the lowest loss of held-out items where the weights stay, and only the bias is fitted."""
    judged, fold = judged_folds(problem, seed, groups)
    some = problem.of_items(judged)
    counts = np.ones(len(judged)) if some.weights is None else some.weights
    outs = [fold == number for number in range(int(fold.max()) + 1)]

    def loss(scale: float) -> float:
        total = 0.0
        for out in outs:
            bias = _bias(cosines[~out] * scale, some.truth[~out], counts[~out])
            total += float(counts[out] @ losses_of(cosines[out] * scale + bias, some.truth[out]))
        return total

    with threads_for(problem.features):
        cosines = some.features @ texts.T
        return min(SCALES, key=loss)


def _bias(logits: Array, truth: Array, counts: Array) -> Array:
    """The bias that fits these logits best, float64 (classes,)."""
    from scipy.optimize import minimize

    classes = logits.shape[1]
    shown = np.bincount(truth, weights=counts, minlength=classes)

    def loss(bias: Array) -> tuple[float, Array]:
        moved = logits + bias
        total = log_sum_exp(moved)
        value = float(counts @ total[:, 0]) - float(shown @ bias)
        return value / len(counts), (np.exp(moved - total).T @ counts - shown) / len(counts)

    options: dict[str, Any] = {"maxiter": MOST_STEPS, "gtol": 1e-2 * float(shown.min()) / len(counts)}
    found: Array = minimize(loss, np.zeros(classes), jac=True, method="L-BFGS-B", options=options).x
    return found
