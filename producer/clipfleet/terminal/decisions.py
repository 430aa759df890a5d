"""The reasons of a decision on one line, wherever people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NO_RULE = "no rule"
_SIGNS = {"at_least": ">=", "below": "<"}


def reasons_words(reasons: Sequence[Mapping[str, Any]], most: int | None = None) -> str:
    """The reasons, or the first ones: `weapons: weapon 0.831 >= 0.5; kinds: style drawing 0.750, chosen`."""
    if not reasons:
        return NO_RULE
    shown = reasons[:most]
    more = f" and {len(reasons) - len(shown)} more" if len(shown) < len(reasons) else ""
    return "; ".join(map(reason_words, shown)) + more


def reason_words(reason: Mapping[str, Any]) -> str:
    """One reason, as rows, records and the stream have it: `weapons: weapon 0.831 >= 0.5`."""
    named = filter(None, [reason.get("head"), reason.get("label")])
    what = f"{reason.get('rule')}: {' '.join(map(str, named))}"
    score, threshold, test = reason.get("score"), reason.get("threshold"), str(reason.get("test"))
    if not isinstance(score, float):
        bound = f", {test.replace('_', ' ')} {threshold:g}" if isinstance(threshold, int | float) else ""
        return f"{what} without a score{bound}"
    if test in _SIGNS and isinstance(threshold, int | float):
        return f"{what} {score:.3f} {_SIGNS[test]} {threshold:g}"
    return f"{what} {score:.3f}, {test}"
