"""Intervals for a share, and the exact binomial distribution under them. Pure functions without numpy."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, lgamma, log, log1p, sqrt
from statistics import NormalDist

_NEGLIGIBLE = 1e-18  # of a sum: smaller terms cannot change it
_HALVINGS = 32  # of the unit interval: the ends are right to 1e-9


def wilson(count: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for the share `count / n`; for display, since its coverage is approximate.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the
    American Statistical Association 22 (1927), 209-212, with p the share:
    `(p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)`.

    Args:
        count: successes, 0 to n; of a weighted share no whole number.
        n: trials, at least 1; likewise.
        confidence: of the two-sided interval, between 0 and 1.

    Raises:
        ValueError: an argument is out of its range.
    """
    _check(count, n, confidence)
    quantile = NormalDist().inv_cdf((1 + confidence) / 2)
    p, scale = count / n, 1 + quantile**2 / n
    middle = (p + quantile**2 / (2 * n)) / scale
    reach = quantile * sqrt(p * (1 - p) / n + (quantile / (2 * n)) ** 2) / scale
    return min(p, max(0.0, middle - reach)), max(p, min(1.0, middle + reach))


def binomial_cdf(k: int, n: int, p: float) -> float:
    """Probability of at most k successes in n independent trials that succeed with probability p each.

    The sum of the binomial terms itself, from the largest one outwards, each from the one before; the first
    by log-gamma. The relative error is below 1e-8 for n up to 1e6, and below 1e-11 for n up to 1,000.

    Raises:
        ValueError: n is negative, or p is not between 0 and 1.
    """
    if n < 0 or not 0 <= p <= 1:
        raise ValueError(f"no binomial distribution has n = {n} and p = {p}")
    if k < 0 or k >= n:
        return 0.0 if k < 0 else 1.0
    if p in (0, 1):
        return 1.0 - p
    if k < n * p:
        return _tail(k, n, p)
    return 1.0 - _tail(n - k - 1, n, 1 - p)


def _tail(k: int, n: int, p: float) -> float:
    """Sum of the terms k, k-1, ..., 0, where k is below the mean: they fall all the way."""
    odds = (1 - p) / p
    term = exp(lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) + k * log(p) + (n - k) * log1p(-p))
    total, successes = term, k
    while successes and term > total * _NEGLIGIBLE:
        term *= successes / (n - successes + 1) * odds
        total += term
        successes -= 1
    return min(total, 1.0)


def clopper_pearson(count: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact interval for the probability behind `count` successes in n trials; for decisions.

    C. J. Clopper and E. S. Pearson, "The use of confidence or fiducial limits illustrated in the case of the
    binomial", Biometrika 26 (1934), 404-413. Each end alone holds with confidence `(1 + confidence) / 2`.
    It is conservative for draws without replacement from a finite population.

    Args:
        count: successes, 0 to n.
        n: trials, at least 1.
        confidence: of the two-sided interval, between 0 and 1.

    Raises:
        ValueError: an argument is out of its range.
    """
    _check(count, n, confidence)
    half = (1 - confidence) / 2
    low = 0.0 if count == 0 else _crossing(lambda p: binomial_cdf(n - count, n, 1 - p) >= half)
    high = 1.0 if count == n else _crossing(lambda p: binomial_cdf(count, n, p) <= half)
    return low, high


def _crossing(is_above: Callable[[float], bool]) -> float:
    """The probability from which on `is_above` holds, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if is_above(middle) else (middle, high)
    return (low + high) / 2


def _check(count: float, n: float, confidence: float) -> None:
    if not 0 <= count <= n or n < 1:
        raise ValueError(f"{count} of {n} is no share")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
