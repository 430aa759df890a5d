"""From scores to probabilities, fitted to marks. Pure: arrays in, arrays out.

Needs numpy (extra `[analysis]`): import it inside functions only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

SMALLEST = 2.0**-25  # probabilities are clamped to this and to 1 less this
SHRINKAGE = 0.25  # 1 / variance of the intercepts among labels
_SLOPE_SPREAD = 1.5  # standard deviation of the logarithm of the slope before any mark
_MOST_STEPS, _CLOSE = 500, 1e-9
_ROUNDS = 3  # in which the weights are scaled anew
_LEAST_INFORMATION = 1e-6  # of a mark: that of marks far from the curve is 0 to a float


def check_finite(values: npt.NDArray[np.floating], what: str) -> None:
    """Refuse values that are not finite numbers.

    Raises:
        ValueError: with the position of the first one, from 0 on.
    """
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ValueError(f"{what} at position {bad[0]} is {values[bad[0]]}, not a finite number")


def check_probabilities(values: npt.NDArray[np.floating]) -> None:
    """Refuse values that are not between 0 and 1, like `check_finite`."""
    check_finite(values, "probability")
    bad = np.flatnonzero((values < 0) | (values > 1))
    if len(bad):
        raise ValueError(f"probability at position {bad[0]} is {values[bad[0]]}, not between 0 and 1")


def logits(p: npt.ArrayLike) -> Floats:
    """`log(p / (1 - p))` of probabilities (n,), clamped to 2^-25 and 1 - 2^-25.

    Raises:
        ValueError: a value is not between 0 and 1, or not a number; its position is named.
    """
    values = np.asarray(p, np.float64)
    check_probabilities(values)
    clamped = np.clip(values, SMALLEST, 1 - SMALLEST)
    return np.asarray(np.log(clamped) - np.log1p(-clamped))


def sigmoid(x: npt.ArrayLike) -> Floats:
    """`1 / (1 + exp(-x))` of numbers (n,), without overflow."""
    values = np.asarray(x, np.float64)
    small = np.exp(-np.abs(values))
    return np.asarray(np.where(values >= 0, 1.0, small) / (1 + small))


@dataclass(frozen=True, slots=True)
class Spread:
    """How uncertain the calibration of one label is: what thresholds need to know of it."""

    intercept: float
    covariance: tuple[tuple[float, float], tuple[float, float]]  # of log(slope) and the intercept


@dataclass(frozen=True, slots=True)
class Calibration:
    """`p = sigmoid(slope * z + intercepts[label])`."""

    slope: float  # above 0
    intercepts: Mapping[str, float]  # of each label
    common: float  # the intercept that those of the labels are shrunk to
    spreads: Mapping[str, Spread] = field(repr=False)  # of each label

    def probabilities(self, z: npt.ArrayLike, label: str) -> npt.NDArray[np.float32]:
        """Probabilities of scores (n,) of a label, float32 as in the rows.

        Raises:
            ValueError: a score is not a finite number; its position is named.
        """
        scores = np.asarray(z, np.float64)
        check_finite(scores, "score")
        return sigmoid(self.slope * scores + self.intercepts[label]).astype(np.float32)


def fit(
    z: npt.ArrayLike,
    label_index: npt.ArrayLike,
    is_yes: npt.ArrayLike,
    weights: npt.ArrayLike,
    labels: Sequence[str],
    shrinkage: float = SHRINKAGE,
) -> Calibration:
    """Fit one slope for all labels and an intercept for each, shrunk to the common one.

    Platt scaling (J. Platt, "Probabilistic outputs for support vector machines", 1999) by weighted maximum
    likelihood with penalties: `shrinkage / 2 * (intercept - common)^2` for each label, and a weak prior on
    the slope, `log(slope)^2 / (2 * 1.5^2)`, so that marks that a threshold separates perfectly have a fit.
    Platt's smoothed targets do the same, but under weights they bias rare labels: with 40 marks "no" the
    target 1 / 42 is 2.4 %, whatever the share of the label.

    The weights of a label are scaled by `sum(w p q) / sum(w^2 p q)`, so that its curvature is the information
    that its marks have (M. Ribatet et al., "Bayesian inference from composite likelihoods", Statistica Sinica
    22 (2012), 813-845): few heavy marks count as few, and are shrunk more.

    Args:
        z: scores of the marks, (n,), see `LabelSet`.
        label_index: positions in `labels`, (n,).
        is_yes: whether the item shows the label, (n,) of bool or 0 and 1.
        weights: 1 / inclusion probability, (n,), above 0; only their ratios within a label matter.
        labels: all labels of the set; one without marks gets the common intercept.
        shrinkage: 1 / variance of the intercepts among labels.

    Raises:
        ValueError: no marks, only yes or only no among them; scores that do not rise with the share of yes; a
            score or a weight that is not a finite number, at a named position.
    """
    marks = _Marks.of(z, label_index, is_yes, weights, len(labels))
    marks.check_sense()
    found, scale = np.zeros(2 + len(labels)), marks.scale(np.ones(len(marks.z)))
    for _ in range(_ROUNDS):
        found, _ = _solved(found, marks, marks.weights * scale, shrinkage)
        p = sigmoid(_values(found, marks))
        scale = marks.scale(np.maximum(p * (1 - p), _LEAST_INFORMATION))
    found, covariance = _solved(found, marks, marks.weights * scale, shrinkage)
    spreads = {}
    for number, label in enumerate(labels):
        sums = np.zeros((2, len(found)))  # what makes log(slope) and the intercept of this label
        sums[0, 0] = sums[1, 1] = sums[1, 2 + number] = 1
        (a, b), (c, d) = (sums @ covariance @ sums.T).tolist()
        spreads[label] = Spread(float(found[1] + found[2 + number]), ((a, b), (c, d)))
    return Calibration(
        slope=float(np.exp(found[0])),
        intercepts={label: spread.intercept for label, spread in spreads.items()},
        common=float(found[1]),
        spreads=spreads,
    )


@dataclass(frozen=True, slots=True)
class _Marks:
    """Checked marks, all (n,)."""

    z: Floats
    label: npt.NDArray[np.int64]
    is_yes: Floats
    weights: Floats
    labels: int

    @classmethod
    def of(
        cls,
        z: npt.ArrayLike,
        label: npt.ArrayLike,
        is_yes: npt.ArrayLike,
        weights: npt.ArrayLike,
        size: int,
    ) -> _Marks:
        scores, verdicts, heavy = (np.asarray(values, np.float64) for values in (z, is_yes, weights))
        marks = cls(scores, np.asarray(label, np.int64), verdicts, heavy, size)
        if len({len(scores), len(marks.label), len(verdicts), len(heavy)}) > 1:
            raise ValueError("scores, labels, verdicts and weights differ in length")
        if not len(scores):
            raise ValueError("there are no marks")
        check_finite(scores, "score")
        check_finite(heavy, "weight")
        if heavy.min() <= 0:
            raise ValueError(f"weight at position {heavy.argmin()} is {heavy.min()}, not above 0")
        if len(set(verdicts.tolist())) < 2:
            raise ValueError(f"all marks are {'yes' if verdicts[0] else 'no'}: a fit needs both yes and no")
        return marks

    def sums(self, values: Floats) -> Floats:
        """Sum of values (n,) for each label, (labels,)."""
        return np.bincount(self.label, values, self.labels).astype(np.float64)

    def check_sense(self) -> None:
        """Refuse scores that do not rise with the share of yes: a slope above 0 would not fit them.

        With weights one heavy yes among the lowest scores decides; the marks contradict the scores only if
        they do so without weights, too.
        """
        if all(self._rise(weights) <= 0 for weights in (self.weights, np.ones(len(self.z)))):
            raise ValueError("the marks contradict the scores: higher scores are not more often yes")

    def _rise(self, weights: Floats) -> float:
        """Covariance of yes and score within the labels, each of weight 1."""
        even = weights / self.sums(weights)[self.label]
        share = self.sums(even * self.is_yes)[self.label]
        return float(np.sum(even * (self.is_yes - share) * self.z))

    def scale(self, information: Floats) -> Floats:
        """Factors (n,) of the weights, equal within a label, see `fit`; `information` is p q of each mark."""
        factors = self.sums(self.weights * information)[self.label]
        return np.asarray(factors / self.sums(self.weights**2 * information)[self.label])


def _values(found: Floats, marks: _Marks) -> Floats:
    return np.asarray(np.exp(found[0]) * marks.z + found[1] + found[2:][marks.label])


def _loss(found: Floats, marks: _Marks, weights: Floats, penalties: Floats) -> float:
    values = _values(found, marks)
    misfit = np.logaddexp(0, values) - marks.is_yes * values
    return float(weights @ misfit + penalties @ found**2 / 2)


def _solved(start: Floats, marks: _Marks, weights: Floats, shrinkage: float) -> tuple[Floats, Floats]:
    """Solution and its covariance: log(slope), common intercept, deviations of the labels.

    Newton's method with the expected curvature, which is positive definite (Fisher scoring), halving steps
    that do not lower the loss.
    """
    penalties = np.full(len(start), shrinkage)
    penalties[:2] = 1 / _SLOPE_SPREAD**2, 0
    found, loss = start, _loss(start, marks, weights, penalties)
    for _ in range(_MOST_STEPS):
        gradient, curvature = _slopes(found, marks, weights, penalties)
        step = np.linalg.solve(curvature, gradient)
        step /= max(1.0, abs(step[0]))  # a slope changes by a factor of e at most: no overflow
        while (lower := _loss(found - step, marks, weights, penalties)) > loss:
            step /= 2
        found, gained, loss = found - step, loss - lower, lower
        if gained <= _CLOSE * max(1.0, loss):
            break
    covariance = np.linalg.inv(_slopes(found, marks, weights, penalties)[1])
    return found, covariance.astype(np.float64)


def _slopes(found: Floats, marks: _Marks, weights: Floats, penalties: Floats) -> tuple[Floats, Floats]:
    """Gradient and expected curvature of the loss."""
    p = sigmoid(_values(found, marks))
    rise = np.exp(found[0]) * marks.z  # derivative of the logit by log(slope)
    errors, heavy = weights * (p - marks.is_yes), weights * p * (1 - p)
    gradient = np.concatenate([[errors @ rise, errors.sum()], marks.sums(errors)]) + penalties * found
    curvature = np.diag(np.concatenate([[heavy @ rise**2, heavy.sum()], marks.sums(heavy)]) + penalties)
    curvature[0, 1] = curvature[1, 0] = heavy @ rise
    curvature[0, 2:] = curvature[2:, 0] = marks.sums(heavy * rise)
    curvature[1, 2:] = curvature[2:, 1] = marks.sums(heavy)
    return gradient, curvature
