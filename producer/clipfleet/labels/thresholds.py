"""From probabilities to the threshold of a label. Pure: arrays in, a number out.

Needs numpy (extra `[analysis]`): import it inside functions only.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, frexp, ldexp, log

import numpy as np
import numpy.typing as npt

from clipfleet.labels.calibrating import SMALLEST, Floats, Spread, check_probabilities, logits
from clipfleet.labels.intervals import binomial_cdf

MARGIN = 0.75  # standard errors of the calibration that a threshold stays on the safe side, at least
_WIDEST_MARGIN, _MARGIN_STEP = 2.0, 0.25
# A threshold for half of the allowed errors is the easier one to certify, where enough rows remain. A row
# below half of the target is no more than a filler, where all others are right beyond doubt.
_CAUTIOUS = 0.5
_KEPT = 0.7  # of the rows that show the label and that the bare target would accept: safety may cost the rest
_ROUNDING = 1e-9
_DOUBT = 0.05  # marks that are less probable than this under the promise contradict it


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
    """A low threshold above which the precision is likely to be at least `target`.

    The expected precision of the accepted rows is the mean of their probabilities; its standard error comes
    from the spread (delta method, on the logit scale). Candidates, the safest first: the lowest threshold
    whose expected precision less 2, 1.75, ... `margin` standard errors is at least `1 - (1 - target) / 2`,
    then the same for `target`; none accepts a row with a probability below `target / 2`. The first one is
    taken whose rows hold 70 % of the yes that is expected above the lowest threshold with `expected precision
    >= target`, else the last one: safety, which makes a certificate likely, is taken in full where it costs
    few rows, and cut where it costs many.

    Args:
        p: probabilities of one label for ALL rows of the output, (n,), in any order.
        target: least precision, between 0 and 1.
        spread: of the label, `Calibration.spreads[label]`; without it, p is exact: `expected >= target`.
        evidence: fit marks of the label; those above the threshold must not contradict the target, as they do
            where so many wrong ones have a probability below 5 %.
        margin: least number of standard errors.

    Returns:
        A number that float32 holds exactly, to be compared with float32 scores by `>=`; rows with equal
        scores fall on the same side of it. None: no threshold reaches the target.

    Raises:
        ValueError: a value is not between 0 and 1, or not a number; its position is named.
    """
    rows = _ascending(p)[::-1]
    ends = np.append(rows[1:] < rows[:-1], True)[: len(rows)]
    if evidence is not None:
        ends &= ~_contradicted(-rows, evidence, -1, 1 - target)
    expected, error = _expected(rows, spread)
    chosen = _chosen(ends, rows, expected, error, np.cumsum(rows), target, margin)
    if chosen is None:
        return None
    return _shortest(float(rows[chosen + 1]) if chosen + 1 < len(rows) else 0.0, float(rows[chosen]))


def threshold_for_miss(
    p: npt.ArrayLike,
    most: float,
    *,
    spread: Spread | None = None,
    evidence: Evidence | None = None,
    margin: float = MARGIN,
) -> float | None:
    """A high threshold below which the share of rows that show the label is likely to be at most `most`.

    It is at most the highest probability, so that at least one row is accepted. Arguments, result and errors
    are those of `threshold_for_precision`, for the rows below the threshold; the margin may cost 30 %
    of the rows that the bare target would leave below.
    """
    rows = _ascending(p)
    ends = np.append(rows[:-1] < rows[1:], False)[: len(rows)]
    if evidence is not None:
        ends &= ~_contradicted(rows, evidence, 1, most)
    expected, error = _expected(rows, spread)
    gain = np.arange(1.0, len(rows) + 1)
    chosen = _chosen(ends, 1 - rows, -expected, error, gain, 1 - most, margin)
    return None if chosen is None else _shortest(float(rows[chosen]), float(rows[chosen + 1]))


def _ascending(p: npt.ArrayLike) -> Floats:
    values = np.asarray(p, np.float32)
    check_probabilities(values)
    return np.sort(values).astype(np.float64)


def _logit(share: float) -> float:
    return log(share) - log(1 - share)


def _expected(rows: Floats, spread: Spread | None) -> tuple[Floats, Floats | None]:
    """Logit of the mean of the first 1, 2, ... rows, and its standard error."""
    counts = np.arange(1, len(rows) + 1)
    means = np.clip(np.cumsum(rows) / counts, SMALLEST, 1 - SMALLEST)
    expected = np.asarray(np.log(means) - np.log1p(-means))
    if spread is None:
        return expected, None
    change = rows * (1 - rows)
    by_slope = np.cumsum(change * (logits(rows) - spread.intercept)) / counts
    by_intercept = np.cumsum(change) / counts
    (a, b), (_, d) = spread.covariance
    variance = a * by_slope**2 + 2 * b * by_slope * by_intercept + d * by_intercept**2
    return expected, np.asarray(np.sqrt(np.maximum(variance, 0)) / (means * (1 - means)))


def _chosen(
    ends: npt.NDArray[np.bool_],
    right: Floats,
    expected: Floats,
    error: Floats | None,
    gain: Floats,
    least: float,
    margin: float,
) -> int | None:
    """Last of the first rows, of those that `ends` allows, see `threshold_for_precision`.

    Args:
        ends: whether the rows may end there.
        right: probability of each row that it belongs there.
        expected: logit of the share of right ones among the rows up to each.
        error: its standard error; None: it has none.
        gain: what the rows up to each are worth.
        least: share of right ones that is asked for.
        margin: least number of standard errors.
    """

    def last(allowed: npt.NDArray[np.bool_], share: float, errors: float) -> int | None:
        safe = expected if error is None else expected - errors * error
        counts = np.flatnonzero(allowed & (safe >= _logit(share)))
        return int(counts[-1]) if len(counts) else None

    bare = last(ends, least, 0)
    if bare is None or error is None:
        return bare
    steps = ceil((_WIDEST_MARGIN - margin) / _MARGIN_STEP)
    margins = [*(_WIDEST_MARGIN - _MARGIN_STEP * step for step in range(steps)), margin]
    found = None
    for share in (1 - (1 - least) * _CAUTIOUS, least):
        for errors in margins:
            found = last(ends & (right >= least * _CAUTIOUS), share, errors)
            if found is not None and gain[found] >= _KEPT * gain[bare]:
                return found
    return found


def _contradicted(rows: Floats, evidence: Evidence, sign: int, allowed: float) -> npt.NDArray[np.bool_]:
    """Whether the marks among the first 1, 2, ... rows are improbable where that share of them is wrong.

    Weighted marks count as `sum(w)^2 / sum(w^2)` (L. Kish, "Survey Sampling", 1965), the wrong ones by their
    weighted share, both rounded down.

    Args:
        rows: probabilities times `sign`, ascending.
        evidence: the marks.
        sign: 1: the first rows are those below a threshold, and yes is wrong; -1: above, and no is wrong.
        allowed: share of wrong ones.
    """
    p = sign * np.asarray(evidence.p, np.float32).astype(np.float64)
    order = np.argsort(p, kind="stable")
    weights = np.asarray(evidence.weights, np.float64)[order]
    is_wrong = np.asarray(evidence.is_yes, bool)[order] == (sign > 0)
    counts = np.cumsum(weights) ** 2 / np.cumsum(weights**2)
    shares = np.cumsum(weights * is_wrong) / np.cumsum(weights)
    found = [False]  # without a mark
    for count, share in zip(counts.tolist(), shares.tolist(), strict=True):
        marks, wrong = int(count + _ROUNDING), int(count * share + _ROUNDING)
        found.append(binomial_cdf(marks - wrong, marks, 1 - allowed) < _DOUBT)
    return np.asarray(found)[np.searchsorted(p[order], rows, side="right")]


def _shortest(low: float, high: float) -> float:
    """The number above `low` and up to `high` with the fewest binary digits; both are float32, so is it."""
    if high <= low or high == 0:
        return high
    step = ldexp(1.0, frexp(high - low)[1])
    while (number := int(high / step) * step) <= low:
        step /= 2
    return number
