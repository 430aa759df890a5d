"""Choose how far a head may leave its start, by items that it has not seen: pure functions on arrays.

A head of one layer minimises `sum(weight * cross-entropy) + |W - start|^2 / (2 c)`. The strength c is chosen
from a grid by stratified cross-validation; the start is 0, or the weights of a zero-shot classifier. Needs
numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Array = np.ndarray

STRENGTHS = tuple(float(c) for c in np.logspace(-2, 4, 13))
# Follow where items count differently: those of a rare label may count very little.
_FURTHER = tuple(float(c) for c in np.logspace(4.5, 8, 8))
FOLDS = 5
LEAST_ITEMS = 2  # of each class: one to learn from, one to judge by
JUDGED = 20_000  # items that the cross-validation uses at most; the head itself is fitted on all
JUDGED_ANSWERS = 5_000_000  # the same times the classes: less items of many classes
_PATIENCE = 2  # strengths in a row that are worse than the best one


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of one layer: `features @ weight.T + bias` are its logits."""

    weight: Array  # float64 (classes, d)
    bias: Array  # float64 (classes,)
    is_minimum: bool = True  # False: the search ended after its most steps

    def logits(self, features: Array) -> Array:
        """Float64 (items, classes)."""
        found: Array = features @ self.weight.T + self.bias
        return found


@dataclass(frozen=True, slots=True)
class Problem:
    """What a layer is fitted to."""

    features: Array  # float (items, d)
    truth: Array  # int (items,); each class occurs
    classes: int  # at least 2
    weights: Array | None = None  # float64 (items,): what each item counts, 1 in the mean; None: 1

    def of_items(self, mask: Array) -> Problem:
        """That of some items."""
        weights = None if self.weights is None else self.weights[mask]
        return Problem(self.features[mask], self.truth[mask], self.classes, weights)


class Solver(Protocol):
    """Finds the layer that minimises the loss."""

    @property
    def scale(self) -> float | None:
        """What the weights of the start are multiplied by; None: it starts at 0."""
        ...

    @property
    def strengths(self) -> Sequence[float]:
        """The c to choose from, rising."""
        ...

    @property
    def errors(self) -> float:
        """Standard errors by which a strength may be worse than the best one and is taken as it is weaker."""
        ...

    def solve(self, problem: Problem, c: float, warm: Layer | None) -> Layer:
        """Fit a layer.

        Args:
            problem: what it is fitted to.
            c: the strength.
            warm: where the search begins, such as the layer of another strength.
        """
        ...


@dataclass(frozen=True, slots=True)
class Fitted:
    """A layer, and what items that it had not seen say about it."""

    layer: Layer
    c: float
    is_at_edge: bool  # c is the last of the grid: a larger one may fit better
    scale: float | None  # see `Solver.scale`
    log_loss: float  # mean, of the items of the held-out folds
    judged: Array  # int64: indexes of the items of the held-out folds
    fold: Array  # int64 (judged,): which one
    probabilities: Array  # float32 (judged, classes), by layers that had not seen the item

    @property
    def folds(self) -> int:
        """Their number."""
        return int(self.fold.max()) + 1


def fit(problem: Problem, solver: Solver, seed: int, groups: Array | None = None) -> Fitted:
    """Choose the strength by cross-validation, then fit a layer on all items.

    Args:
        problem: with at least `LEAST_ITEMS` of each class.
        solver: for this kind of layer.
        seed: of the folds; the same gives the same layer.
        groups: int (items,): items with the same number lie in the same fold.

    Raises:
        ValueError: a class has too few items.
    """
    counts = np.bincount(problem.truth, minlength=problem.classes)
    if counts.min() < LEAST_ITEMS:
        raise ValueError(f"class {int(counts.argmin())} has {int(counts.min())} items")
    judged, fold = judged_folds(problem, seed, groups)
    some = problem if len(judged) == len(problem.truth) else problem.of_items(judged)
    best, is_at_edge = _best(some, fold, solver)
    mean = Layer(
        np.mean([layer.weight for layer in best.layers], axis=0),
        np.mean([layer.bias for layer in best.layers], axis=0),
    )
    return Fitted(
        layer=solver.solve(problem, best.c, mean),
        c=best.c,
        is_at_edge=is_at_edge,
        scale=solver.scale,
        log_loss=best.loss,
        judged=judged,
        fold=fold,
        probabilities=np.exp(best.logits - log_sum_exp(best.logits)).astype(np.float32),
    )


def judged_folds(problem: Problem, seed: int, groups: Array | None = None) -> tuple[Array, Array]:
    """Indexes of the items that judge, int64 (judged,), and the fold of each."""
    random = np.random.default_rng(seed)
    judged = _judged(problem.truth, problem.classes, random)
    labels = problem.truth[judged]
    count = min(FOLDS, int(np.bincount(labels).max()))
    own = None if groups is None else groups[judged]
    return judged, folds(labels, problem.classes, count, random, own)


def folds(
    truth: Array, classes: int, count: int, random: np.random.Generator, groups: Array | None = None
) -> Array:
    """A fold for each item, int64 (items,); the items of each class are spread evenly over the folds.

    Items of one group lie in the same fold, unless a class would then have items in one fold only.
    """
    if groups is None:
        return _dealt(truth, classes, count, random)
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    found: Array = _dealt(truth[first], classes, count, random)[group]
    lowest, highest = np.full(classes, count), np.full(classes, -1)
    np.minimum.at(lowest, truth, found)
    np.maximum.at(highest, truth, found)
    for label in np.flatnonzero(lowest == highest):
        items = np.flatnonzero(truth == label)
        found[items] = (np.arange(len(items)) + found[items[0]]) % count
    return found


def _dealt(truth: Array, classes: int, count: int, random: np.random.Generator) -> Array:
    found = np.empty(len(truth), np.int64)
    dealt = 0
    for label in range(classes):
        items = random.permutation(np.flatnonzero(truth == label))
        found[items] = (np.arange(len(items)) + dealt) % count
        dealt += len(items)
    return found


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Layers of one strength, each fitted without its fold, and what they say of that fold."""

    c: float
    layers: tuple[Layer, ...]
    logits: Array  # float64 (items, classes)
    loss: float  # mean, by the weights of the items


def held_out(
    problem: Problem, fold: Array, solver: Solver, c: float, warm: Sequence[Layer | None] = ()
) -> HeldOut:
    """Fit a layer without each fold, from the layers of another strength on."""
    logits = np.empty((len(problem.truth), problem.classes))
    layers = []
    for number in range(int(fold.max()) + 1):
        out = fold == number
        layer = solver.solve(problem.of_items(~out), c, warm[number] if warm else None)
        logits[out] = layer.logits(problem.features[out])
        layers.append(layer)
    return HeldOut(c, tuple(layers), logits, mean_loss(logits, problem))


def mean_loss(logits: Array, problem: Problem) -> float:
    """Mean cross-entropy by the weights of the items; logits are (items, classes)."""
    return float(np.average(losses_of(logits, problem.truth), weights=problem.weights))


def losses_of(logits: Array, truth: Array) -> Array:
    """Cross-entropy of each item, float64 (items,); logits are (items, classes)."""
    found: Array = log_sum_exp(logits)[:, 0] - logits[np.arange(len(truth)), truth]
    return found


def log_sum_exp(logits: Array) -> Array:
    """Per row, (items, 1)."""
    highest = logits.max(axis=1, keepdims=True)
    found: Array = highest + np.log(np.exp(logits - highest).sum(axis=1, keepdims=True))
    return found


def _best(problem: Problem, fold: Array, solver: Solver) -> tuple[HeldOut, bool]:
    """The weakest strength that is as good on held-out items as the best one, see `Solver.errors`.

    They are tried from the weakest on until they get worse; each begins at the layers of the one before. Also
    says whether the best one is the last of the grid.
    """
    strengths = _strengths(problem, solver)
    tried: list[HeldOut] = []
    best = 0
    for c in strengths:
        tried.append(held_out(problem, fold, solver, c, tried[-1].layers if tried else ()))
        if tried[-1].loss <= tried[best].loss:
            best = len(tried) - 1
            if not solver.errors:
                tried, best = tried[-1:], 0
        elif len(tried) - 1 - best >= _PATIENCE:
            break
    lowest = losses_of(tried[best].logits, problem.truth)
    for one in tried[:best]:
        if _is_as_good(losses_of(one.logits, problem.truth) - lowest, problem.weights, solver.errors):
            return one, False
    return tried[best], tried[best].c == strengths[-1]


def _strengths(problem: Problem, solver: Solver) -> Sequence[float]:
    counts_alike = problem.weights is None or bool(np.ptp(problem.weights) == 0)
    return solver.strengths if counts_alike else (*solver.strengths, *_FURTHER)


def _is_as_good(more: Array, weights: Array | None, errors: float) -> bool:
    """Whether the loss of each item is more, in the mean, by no more than these standard errors."""
    counted = more if weights is None else more * weights
    return float(counted.mean()) <= errors * float(counted.std()) / float(np.sqrt(len(counted)))


def _judged(truth: Array, classes: int, random: np.random.Generator) -> Array:
    """Indexes of all items, or of a stratified sample with at least `LEAST_ITEMS` of each class."""
    most = min(JUDGED, max(JUDGED_ANSWERS // classes, LEAST_ITEMS * classes))
    if len(truth) <= most:
        return np.arange(len(truth))
    share = most / len(truth)
    kept: Sequence[Array] = [
        random.permutation(items)[: max(LEAST_ITEMS, round(share * len(items)))]
        for items in (np.flatnonzero(truth == label) for label in range(classes))
    ]
    return np.sort(np.concatenate(kept))
