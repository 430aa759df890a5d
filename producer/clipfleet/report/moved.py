"""What moved between two outputs of the same items: labels, failures and decisions. Bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.columns import DECISION_COLUMNS
from clipfleet.contract.parts import ItemStatus
from clipfleet.errors import UsageError
from clipfleet.report.samples import Smallest, uniform_keys
from clipfleet.results.rows import RowReader

NONE, FAILED, OTHERS = "(no label)", "(failed)", "(others)"
EXAMPLES = 6  # of each move
SHOWN_MOVES = 60
_MOST_MOVES = 100_000  # that are counted one by one
_COMPARED = "item_index", "item_id", "status"


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two outputs."""

    reader: RowReader
    columns: Sequence[str]  # that are compared, with the same meaning on both sides

    def batches(self) -> Iterator[pa.Table]:
        """The rows that are compared, in the order of the source."""
        for batch in self.reader.read([*_COMPARED, *self.columns]).batches:
            if batch.num_rows:
                yield pa.Table.from_batches([batch])


class Moves:
    """Counts of rows by what they were and what they are."""

    def __init__(self, now: RowReader, before: RowReader, columns: Sequence[str]) -> None:
        self._now, self._before = Side(now, columns), Side(before, columns)
        self.columns = columns
        self.both = self.only_now = self.only_before = 0
        self.changed: dict[str, Counter[tuple[str, str]]] = {column: Counter() for column in columns}
        self._numbers: dict[tuple[str, str, str], int] = {}
        self.examples = Smallest(EXAMPLES)

    def count(self) -> None:
        """Read both outputs once, side by side.

        Raises:
            UsageError: an item has another id: the outputs are of other items.
        """
        for now, before in _side_by_side(self._now.batches(), self._before.batches()):
            joined = now.join(before, "item_index", join_type="inner", right_suffix=" before")
            self.both += joined.num_rows
            self.only_now += now.num_rows - joined.num_rows
            self.only_before += before.num_rows - joined.num_rows
            self._require_same(joined)
            for column in self.columns:
                self._add(column, joined)

    def _require_same(self, joined: pa.Table) -> None:
        differs = joined.filter(pc.not_equal(joined["item_id"], joined["item_id before"]))
        if differs.num_rows:
            one = differs.slice(0, 1).to_pylist()[0]
            raise UsageError(
                f"{self._before.reader.uri}: its item {one['item_index']} is {one['item_id before']!r}, and "
                f"that of {self._now.reader.uri} {one['item_id']!r}: compare outputs of the same source"
            )

    def _add(self, column: str, joined: pa.Table) -> None:
        now = _said(joined[column], joined["status"])
        before = _said(joined[f"{column} before"], joined["status before"])
        moved = pc.not_equal(now, before)
        now, before = now.filter(moved), before.filter(moved)
        indexes = joined["item_index"].filter(moved)
        pairs = zip(before.to_pylist(), now.to_pylist(), strict=True)
        groups = pa.array([self._number(column, *pair) for pair in pairs], pa.int32())
        keys = uniform_keys(indexes)
        self.examples.add(groups, keys, indexes, pa.nulls(len(indexes), pa.float64()))

    def _number(self, column: str, before: str, now: str) -> int:
        """Count a move, and return its number; beyond the most, moves are counted together."""
        move = (column, before, now)
        if move not in self._numbers and len(self._numbers) >= _MOST_MOVES:
            move = (column, OTHERS, OTHERS)
        self.changed[column][move[1:]] += 1
        return self._numbers.setdefault(move, len(self._numbers))

    def summary(self) -> dict[str, Any]:
        """Moves of each column by their number, with the `item_index` of examples."""
        return {
            "before": self._before.reader.uri,
            "both": self.both,
            "only_now": self.only_now,
            "only_before": self.only_before,
            "columns": [
                {
                    "column": column,
                    "changed": counts.total(),
                    "kinds": len(counts),
                    "moves": [
                        {
                            "before": before,
                            "now": now,
                            "count": count,
                            "items": self._items(column, before, now),
                        }
                        for (before, now), count in counts.most_common(SHOWN_MOVES)
                    ],
                }
                for column, counts in self.changed.items()
            ],
        }

    def shown(self) -> set[int]:
        """The `item_index` of the examples in the summary."""
        return {
            index
            for column in self.summary()["columns"]
            for move in column["moves"]
            for index in move["items"]
        }

    def _items(self, *move: str) -> list[int]:
        column, before, now = move
        return [index for index, _ in self.examples.of(self._numbers[column, before, now])]


def moves_between(now: RowReader, before: RowReader) -> Moves:
    """Compare the columns with labels and decisions that both outputs have, see `Moves.count`.

    Raises:
        UsageError: they share none. Otherwise see `RowReader.read`.
    """
    names = [{*reader.read().schema.names} for reader in (now, before)]
    job = now.job()
    wanted = ["label", DECISION_COLUMNS[0]]
    if job is not None:
        wanted += [f"label_{one.name}" for one in job.named_label_sets[1:]]
        wanted += [head.columns[0] for head in job.heads]
    shared = [name for name in dict.fromkeys(wanted) if all(name in one for one in names)]
    if not shared:
        raise UsageError(f"{before.uri}: shares no labels with {now.uri}: compare outputs with labels")
    return Moves(now, before, shared)


def _said(column: pa.ChunkedArray, status: pa.ChunkedArray) -> pa.ChunkedArray:
    """The label as text; without one, whether the item failed."""
    text = pc.fill_null(column.cast(pa.string()), NONE)
    return pc.if_else(pc.equal(status, pa.scalar(ItemStatus.FAILED.value)), FAILED, text)


def _side_by_side(
    ours: Iterator[pa.Table], theirs: Iterator[pa.Table]
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Cut two streams in the order of `item_index` into pieces of the same range."""
    one, other = next(ours, None), next(theirs, None)
    while one is not None or other is not None:
        ends = [table["item_index"][-1].as_py() for table in (one, other) if table is not None]
        end = min(ends) if one is not None and other is not None else ends[0]
        here, one = _cut(one, end)
        there, other = _cut(other, end)
        present = here if here is not None else there
        assert present is not None  # noqa: S101 - the end is that of one of them
        yield (
            here if here is not None else present.schema.empty_table(),
            there if there is not None else present.schema.empty_table(),
        )
        one = next(ours, None) if one is None else one
        other = next(theirs, None) if other is None else other


def _cut(table: pa.Table | None, end: int) -> tuple[pa.Table | None, pa.Table | None]:
    """The rows up to an index, and the rest; None where there are none."""
    if table is None:
        return None, None
    count = pc.sum(pc.less_equal(table["item_index"], end)).as_py()
    return (table.slice(0, count) if count else None), (
        table.slice(count) if count < table.num_rows else None
    )
