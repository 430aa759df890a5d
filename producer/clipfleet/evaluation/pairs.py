"""Comparison of two evaluations of the same items."""

from __future__ import annotations

from clipfleet.errors import UsageError
from clipfleet.evaluation.measuring import difference_interval
from clipfleet.evaluation.outcome import PROBE, Compared, Evaluation
from clipfleet.labels.comparing import mcnemar


def compare(first: Evaluation, second: Evaluation, name: str) -> Evaluation:
    """Return the first evaluation with its differences from the second.

    Only items that both count are compared; each interval is a paired bootstrap, the p-value of acc1 is
    McNemar's.

    Args:
        first: an evaluation.
        second: of the same items and truth.
        name: of the second one, for people.

    Raises:
        UsageError: the items or their truth differ.
    """
    if first.truth_hash != second.truth_hash:
        raise UsageError(
            f"{first.source} and {name} differ in their items or in the truth: compare the same items"
        )
    both = first.items_ok & second.items_ok
    if not both.any():
        raise UsageError(f"{first.source} and {name} have no item that both count")
    one, other = first.measure(both), second.measure(both)
    found = []
    others = {_plain(metric): metric for metric in other.metrics}
    for metric, value in one.metrics.items():
        theirs = others.get(_plain(metric), metric)
        against = other.metrics.get(theirs)
        is_both = metric in one.resampled and theirs in other.resampled
        p_value = None
        if _plain(metric) == "acc1" and one.right is not None and other.right is not None:
            p_value = mcnemar(one.right, other.right).p_value
        interval = None
        if is_both:
            pair = one.resampled[metric], other.resampled[theirs]
            interval = difference_interval(*pair, metric, one.items)
        difference = None if value is None or against is None else value - against
        found.append(Compared(metric, value, against, difference, interval, p_value))
    return first.compared(name, second, tuple(found))


def _plain(metric: str) -> str:
    """A head is compared with zero-shot labels by the same metric, which has another name."""
    return metric.removeprefix(PROBE)
