"""Intervals by bootstrap, and tests of two evaluations of the same items. Pure functions. Needs numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from clipfleet.labels.intervals import binomial_cdf

RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class McNemar:
    """Test of two classifiers on the same items: only items that just one of them gets right count."""

    only_first: int  # items that only the first got right
    only_second: int
    p_value: float  # two-sided: how probable at least such a difference is if both are equally good


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """Compare two classifiers (McNemar 1947), by the exact binomial test.

    Args:
        first: bool (items,), whether the first was right.
        second: bool (items,), of the same items.
    """
    one, other = int((first & ~second).sum()), int((second & ~first).sum())
    p_value = min(1.0, 2 * binomial_cdf(min(one, other), one + other, 0.5))
    return McNemar(one, other, p_value)


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    items: int,
    *,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a statistic over resampled items (Efron 1979), moved onto its value.

    Resamples repeat items, which raises statistics of rankings: the interval is moved so that the median of
    the resamples falls on the value of all items, which therefore is always inside.

    For a difference of two evaluations of the same items, `statistic` returns the difference: both see the
    same items in each resample. Resamples for which it is NaN are left out.

    Args:
        statistic: takes how often each item was drawn, int64 (items,).
        items: number of items.
        resamples: number of resamples.
        confidence: of the interval.
        seed: of the draws: equal arguments give equal intervals.

    Returns:
        The lower and the upper end, possibly outside of the range of the statistic; NaN if no resample has a
        value.
    """
    random = np.random.default_rng(seed)
    values = np.array(
        [
            statistic(np.bincount(random.integers(0, items, items), minlength=items))
            for _ in range(resamples if items else 0)
        ]
    )
    values = values[~np.isnan(values)]
    if not len(values):
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    low, middle, high = np.quantile(values, [tail, 0.5, 1 - tail])
    value = statistic(np.ones(items, np.int64))
    return float(value + low - middle), float(value + high - middle)
