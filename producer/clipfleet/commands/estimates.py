"""The line about all items of a source, after a sample of it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING

from clipfleet.terminal.progress import duration_words

if TYPE_CHECKING:
    from clipfleet.results.estimate import Estimate, Share

_NAMED_LABELS = 5  # of each label set


def estimate_words(estimate: Estimate) -> str:
    """`estimate for all 12,000 items: failed 1.3 % (0.6-2.9 %); cat 41 % (37-45 %), ...; about 14 min`."""
    labels = [
        _labels_words("" if len(estimate.labels) == 1 else f"{name}: ", shares, estimate.unlabelled.get(name))
        for name, shares in estimate.labels.items()
        if shares or name in estimate.unlabelled
    ]
    lasts = [] if estimate.seconds is None else [f"about {duration_words(estimate.seconds)} at this rate"]
    parts = "; ".join([_words("failed", estimate.failed), *labels, *lasts])
    return f"estimate for all {estimate.items:,} items: {parts}"


def _labels_words(prefix: str, shares: Mapping[str, Share], unlabelled: Share | None) -> str:
    named = [_words(label, share) for label, share in islice(shares.items(), _NAMED_LABELS)]
    rest = len(shares) - len(named)
    last = [] if unlabelled is None else [_words("no label", unlabelled)]
    return prefix + ", ".join([*named, *([f"{rest:,} more"] if rest else []), *last])


def _words(name: str, share: Share) -> str:
    return f"{name} {_percent(share.share)} % ({_percent(share.low)}-{_percent(share.high)} %)"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}" if share >= 0.0995 else f"{100 * share:.1f}".removesuffix(".0")
