"""Counts pairs of decisions, and keeps the most severe changes, in bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.policies import DecisionStatus
from clipfleet.parts.json_rows import json_dicts
from clipfleet.replay.pairs import CHANGES

_SEVERITY = {
    DecisionStatus.ALLOW: 0, DecisionStatus.UNDECIDED: 1, DecisionStatus.REVIEW: 1, DecisionStatus.FLAG: 2
}  # fmt: skip
_BETWEEN = "\n"  # of two names of decisions

Pair = tuple[str, str]  # the old and the new decision


def by_severity(pair: Pair) -> tuple[int, bool, Pair]:
    """Sorts pairs: first those that differ most, and of these the ones that become milder."""
    old, new = (_SEVERITY[DecisionStatus(one)] for one in pair)
    return -abs(old - new), new > old, pair


class Comparison:
    """What pairs of decisions say; complete once `changes` has been read."""

    def __init__(self, pairs: Iterator[pa.RecordBatch], most_shown: int) -> None:
        """Nothing is read yet.

        Args:
            pairs: see `PAIRS`; readable once.
            most_shown: upper bound of the changes that are kept.
        """
        self._pairs = pairs
        self._most = most_shown
        self._shown: dict[Pair, list[dict[str, Any]]] = {}
        self.counts: Counter[Pair] = Counter()
        self.failed: Counter[str] = Counter()  # items without a vector or a score, by error code
        self.examples: dict[str, str] = {}  # error code -> id of an item
        self.decided_otherwise = 0  # items whose recorded decision is not the old one

    def changes(self) -> Iterator[pa.RecordBatch]:
        """The items that change side, in their order, in `CHANGES`."""
        for batch in self._pairs:
            self._count(batch)
            changed = batch.filter(pc.not_equal(batch["old"], batch["new"]))
            if changed.num_rows:
                changed = changed.select(CHANGES.names)
                self._keep(changed)
                yield changed

    @property
    def shown(self) -> list[dict[str, Any]]:
        """The first changes, the most severe ones first, as objects of JSON types."""
        pairs = sorted(self._shown, key=by_severity)
        return list(islice((row for pair in pairs for row in self._shown[pair]), self._most))

    def _count(self, batch: pa.RecordBatch) -> None:
        self.counts.update(_pairs_in(batch))
        failed = batch.filter(pc.is_valid(batch["error_code"]))
        for entry in pc.value_counts(failed["error_code"]).to_pylist():
            code = entry["values"]
            self.failed[code] += entry["counts"]
            if code not in self.examples:
                first = pc.index(failed["error_code"], code).as_py()
                self.examples[code] = failed["item_id"][first].as_py()
        self.decided_otherwise += pc.sum(pc.not_equal(batch["recorded"], batch["old"])).as_py() or 0

    def _keep(self, changed: pa.RecordBatch) -> None:
        for old, new in _pairs_in(changed):
            kept = self._shown.setdefault((old, new), [])
            if len(kept) < self._most:
                is_it = pc.and_(pc.equal(changed["old"], old), pc.equal(changed["new"], new))
                kept += json_dicts(changed.filter(is_it).slice(0, self._most - len(kept)))


def _pairs_in(batch: pa.RecordBatch) -> dict[Pair, int]:
    """How often each pair occurs."""
    names = pc.binary_join_element_wise(batch["old"], batch["new"], _BETWEEN)
    found = {}
    for entry in pc.value_counts(names).to_pylist():
        old, new = entry["values"].split(_BETWEEN)
        found[old, new] = entry["counts"]
    return found
