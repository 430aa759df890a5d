"""How many items of a model go into a batch: fewer where a whole one would take seconds.

Results come a batch at a time, so large batches of a slow model hide its progress. They gain nothing there:
ViT-B-32 in fp32 on two cores runs 23 images/s in batches of 8 and 21 in batches of 64; in bf16, where
batches of 64 are up to 1.2 times as fast as those of 32, they take less than `_BATCH_SECONDS`.
"""

from __future__ import annotations

from typing import Protocol

_BATCH_SECONDS = 0.7
_FIRST = 16  # items of the first batch of a model, which measures it


class Named(Protocol):
    """A loaded model."""

    fingerprint: str


class BatchSizes:
    """The present size of a full batch of each model, from its last one. Belongs to the batcher's thread."""

    def __init__(self, most: int, least: int | None = None) -> None:
        """Nothing is measured yet.

        Args:
            most: items of a batch.
            least: items of a batch of the slowest models; None: all batches have `most`.
        """
        self._most = most
        self._least = most if least is None else min(least, most)
        self._measured: dict[tuple[str, bool], int] = {}  # a dozen bytes for each model that was ever loaded

    def of(self, encoder: Named, *, is_text: bool) -> int:
        """Items of a full batch."""
        first = max(_FIRST, self._least)
        wanted = self._measured.get((encoder.fingerprint, is_text), first)
        return max(self._least, min(wanted, self._most))

    def note(self, encoder: Named, *, is_text: bool, seconds_each: float) -> None:
        """Record how long the last batch took per item."""
        self._measured[encoder.fingerprint, is_text] = int(_BATCH_SECONDS / max(seconds_each, 1e-9))
