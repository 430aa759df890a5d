"""Routes measured alternately, so that a busy machine slows all alike; their median ratios."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence


def in_turns(
    routes: Mapping[str, Callable[[], float]], rounds: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Call each route once per round, in a rotating order, after one round to warm up."""
    found: dict[str, list[float]] = {name: [] for name in routes}
    names = list(routes)
    for number in range(-1 if warm_up else 0, rounds):
        for name in names if number % 2 == 0 else reversed(names):
            value = routes[name]()
            if number >= 0:
                found[name].append(value)
    return found


def median_ratio(these: Sequence[float], by_those: Sequence[float]) -> float:
    """The median of the ratios of neighbouring runs."""
    return statistics.median(a / b for a, b in zip(these, by_those, strict=True))
