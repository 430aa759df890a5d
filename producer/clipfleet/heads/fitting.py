"""Fit a head to embeddings and their labels by logistic regression. Needs numpy and scikit-learn."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
from typing_extensions import override

from clipfleet.heads.cross_validation import STRENGTHS, Fitted, Layer, Problem, Solver, fit

Array = np.ndarray

MOST_STEPS = 1_000  # of L-BFGS
_TOLERANCE = 1e-4  # largest entry of the gradient of the mean loss at which the search ends, at most
_SHARE = 1e-2  # the same, as a share of what the gradient is at weights of 0
_DOUBLES = 1 << 27  # numbers of a matrix that is copied to double precision; 1 GiB

_WORTH_THREADS = 20_000_000  # numbers of a matrix from which on a step takes long enough to be shared

# A solver for two or more classes; takes the classes of the layer that it is for, none: all.
SolverOf = Callable[[int | None], Solver]


@dataclass(frozen=True, slots=True)
class LogisticRegression(Solver):
    """Scikit-learn's multinomial logistic regression by L-BFGS, see `Solver`."""

    scale: float | None = None
    errors: float = 0.0

    @property
    @override
    def strengths(self) -> Sequence[float]:
        return STRENGTHS

    @override
    def solve(self, problem: Problem, c: float, warm: Layer | None) -> Layer:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression as Model

        model = Model(C=c, max_iter=MOST_STEPS, tol=tolerance_for(problem), warm_start=warm is not None)
        if warm is not None:
            model.classes_ = np.arange(problem.classes)
            model.coef_, model.intercept_ = _as_theirs(warm)
        with warnings.catch_warnings():
            # It is said with the head, see `Layer.is_minimum`.
            warnings.simplefilter("ignore", ConvergenceWarning)
            # Labels are no numbers to regress on, also where each has few items.
            warnings.filterwarnings("ignore", "The number of unique classes is greater", UserWarning)
            model.fit(problem.features, problem.truth, sample_weight=problem.weights)
        is_minimum = bool(np.max(model.n_iter_) < MOST_STEPS)
        return replace(_as_ours(model.coef_, model.intercept_), is_minimum=is_minimum)


def tolerance_for(problem: Problem) -> float:
    """Where the search may end: the gradient of the *mean* loss is smaller the rarer a class is.

    At weights of 0 the entries of a class are about its share of the items, over the root of d.
    """
    counts = np.bincount(problem.truth, weights=problem.weights, minlength=problem.classes)
    share = float(counts.min() / counts.sum())
    return min(_TOLERANCE, _SHARE * share / float(np.sqrt(problem.features.shape[1])))


def _as_theirs(layer: Layer) -> tuple[Array, Array]:
    """As scikit-learn has it: of two classes the second one's logit only."""
    if len(layer.bias) > 2:
        return layer.weight.copy(), layer.bias.copy()
    return layer.weight[1:] - layer.weight[:1], layer.bias[1:] - layer.bias[:1]


def _as_ours(weight: Array, bias: Array) -> Layer:
    if len(bias) > 1:
        return Layer(weight.astype(np.float64), bias.astype(np.float64))
    half_weight, half_bias = weight.astype(np.float64) / 2, bias.astype(np.float64) / 2
    return Layer(np.concatenate([-half_weight, half_weight]), np.concatenate([-half_bias, half_bias]))


def from_nothing(_: int | None) -> Solver:
    """The solver of heads that begin at 0."""
    return LogisticRegression()


def fit_classifier(
    features: Array, truth: Array, classes: int, *, solver_of: SolverOf = from_nothing, seed: int = 0,
    weights: Array | None = None, groups: Array | None = None,
) -> Fitted:  # fmt: skip
    """Fit a head that chooses one of several classes.

    Args:
        features: (items, d), of length 1.
        truth: int (items,), at least two items of each class.
        classes: at least 2.
        solver_of: where the weights begin, see `from_nothing` and `fitting_from_labels.from_texts`.
        seed: of the folds.
        weights: float (items,), how much each item counts, compared to others; None: all the same.
        groups: int (items,): items with the same number, such as equal images, lie in the same fold.

    Raises:
        ValueError: a class has fewer items.
    """
    with threads_for(features):
        problem = Problem(in_double(features), truth, classes, scaled(weights))
        return fit(problem, solver_of(None), seed, groups)


def fit_multilabel(
    features: Array, truth: Array, known: Array, *, solver_of: SolverOf = from_nothing, seed: int = 0,
    weights: Array | None = None, groups: Array | None = None,
) -> list[Fitted]:  # fmt: skip
    """Fit a head that answers for each label: one logistic regression of two classes per label.

    Args:
        features: (items, d), of length 1.
        truth: bool (items, labels); at least two items that show a label, and two that do not.
        known: bool (items, labels): where the truth is known; other items do not count for the label.
        solver_of: see `fit_classifier`; takes the number of the label.
        seed: of the folds.
        weights: float (items, labels), see `fit_classifier`.
        groups: see `fit_classifier`.

    Returns:
        For each label the layer of its two classes; `judged` are indexes of all items.

    Raises:
        ValueError: a label has fewer items.
    """
    precise = in_double(features)
    found = []
    with threads_for(features):
        for label in range(truth.shape[1]):
            items = np.flatnonzero(known[:, label])
            own = precise if len(items) == len(precise) else precise[items]
            counting = None if weights is None else scaled(weights[items, label])
            problem = Problem(own, truth[items, label].astype(np.int64), 2, counting)
            one = fit(problem, solver_of(label), seed, None if groups is None else groups[items])
            found.append(replace(one, judged=items[one.judged]))
    return found


def scaled(weights: Array | None) -> Array | None:
    """Weights of items as float64 with the mean 1."""
    return None if weights is None else np.asarray(weights / weights.mean(), np.float64)


def joined(fits: Sequence[Fitted]) -> Layer:
    """The layer of a multilabel head: for each label the logit of its second class less that of its first."""
    weights = [one.layer.weight[1] - one.layer.weight[0] for one in fits]
    biases = [one.layer.bias[1] - one.layer.bias[0] for one in fits]
    return Layer(np.stack(weights), np.array(biases))


def threads_for(features: Array) -> AbstractContextManager[object]:
    """Hold the arithmetic of a small matrix to one thread.

    A step of the search takes less than a millisecond there. On a machine with other work each one waits for
    threads that have no CPU: a fit of 3 seconds was seen to take minutes.
    """
    if features.size >= _WORTH_THREADS:
        return nullcontext()
    import sklearn.linear_model  # noqa: F401 - what is loaded later is not held
    from threadpoolctl import threadpool_limits  # of scikit-learn's own requirements

    held: AbstractContextManager[object] = threadpool_limits(1)
    return held


def in_double(features: Array) -> Array:
    """In double precision, in which the search converges sooner; as it is if that would be too large."""
    return features.astype(np.float64) if features.size <= _DOUBLES else features
