"""From probabilities to the threshold of a label. Pure: arrays in, a number out.

Needs numpy (extra `[analysis]`): import it inside functions only.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import frexp, ldexp, log

import numpy as np
import numpy.typing as npt

from clipfleet.labels.calibrating import SMALLEST, Floats, Spread, check_probabilities, logits

MARGIN = 1.0  # standard errors of the calibration that a threshold stays on the safe side


@dataclass(frozen=True, slots=True)
class Evidence:
    """The fit marks of one label, as direct evidence for its threshold. All (n,)."""

    p: npt.ArrayLike  # probabilities of the marked rows
    is_yes: npt.ArrayLike  # bool, or 0 and 1
    weights: npt.ArrayLike  # 1 / inclusion probability


def threshold_for_precision(
    p: npt.ArrayLike,
    target: float,
    *,
    spread: Spread | None = None,
    evidence: Evidence | None = None,
    margin: float = MARGIN,
) -> float | None:
    """The lowest threshold above which the expected precision is at least `target`.

    The expected precision of accepted rows is the mean of their probabilities.

    Args:
        p: probabilities of one label for ALL rows of the output, (n,), in any order.
        target: least precision, between 0 and 1.
        spread: of the label, `Calibration.spreads[label]`; without it, p is taken as exact.
        evidence: fit marks of the label; without them, only p counts.
        margin: standard errors that the expected precision stays above the target.

    Returns:
        A number that float32 holds exactly, to be compared with float32 scores by `>=`; rows with equal
        scores fall on the same side of it. None: no threshold reaches the target.

    Raises:
        ValueError: a value is not between 0 and 1, or not a number; its position is named.
    """
    rows = _ascending(p)[::-1]
    serves = _bound(rows, spread, -margin) >= _logit(target)
    counts = np.flatnonzero(serves & np.append(rows[1:] < rows[:-1], True))
    if not len(counts):
        return None
    last = int(counts[-1])
    return _shortest(float(rows[last + 1]) if last + 1 < len(rows) else 0.0, float(rows[last]))


def threshold_for_miss(
    p: npt.ArrayLike,
    most: float,
    *,
    spread: Spread | None = None,
    evidence: Evidence | None = None,
    margin: float = MARGIN,
) -> float | None:
    """The highest threshold below which the expected share of rows that show the label is at most `most`.

    It is at most the highest probability, so that at least one row is accepted. Arguments, result and errors
    are those of `threshold_for_precision`, with the rows below the threshold.
    """
    rows = _ascending(p)
    serves = _bound(rows, spread, margin) <= _logit(most)
    counts = np.flatnonzero(serves & np.append(rows[:-1] < rows[1:], False))
    return _shortest(float(rows[counts[-1]]), float(rows[counts[-1] + 1])) if len(counts) else None


def _ascending(p: npt.ArrayLike) -> Floats:
    values = np.asarray(p, np.float32)
    check_probabilities(values)
    return np.sort(values).astype(np.float64)


def _logit(share: float) -> float:
    return log(share) - log(1 - share)


def _bound(rows: Floats, spread: Spread | None, margin: float) -> Floats:
    """Logit of the mean of the first 1, 2, ... rows, and `margin` standard errors of it (delta method)."""
    counts = np.arange(1, len(rows) + 1)
    means = np.clip(np.cumsum(rows) / counts, SMALLEST, 1 - SMALLEST)
    middle = np.log(means) - np.log1p(-means)
    if spread is None:
        return np.asarray(middle)
    change = rows * (1 - rows)
    by_slope = np.cumsum(change * (logits(rows) - spread.intercept)) / counts
    by_intercept = np.cumsum(change) / counts
    (a, b), (_, d) = spread.covariance
    variance = a * by_slope**2 + 2 * b * by_slope * by_intercept + d * by_intercept**2
    return np.asarray(middle + margin * np.sqrt(np.maximum(variance, 0)) / (means * (1 - means)))


def _shortest(low: float, high: float) -> float:
    """The number above `low` and up to `high` with the fewest binary digits; both are float32, so is it."""
    if high <= low or high == 0:
        return high
    step = ldexp(1.0, frexp(high - low)[1])
    while True:
        number = int(high / step) * step
        if number > low:
            return number
        step /= 2
