"""Rows of several jobs are read side by side, whatever the size of their batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pyarrow as pa
import pytest

from clipfleet.contract.columns import DECISION_COLUMNS
from clipfleet.contract.parts import DECISION_TYPES
from clipfleet.errors import OutputDamagedError
from clipfleet.replay.pairs import PAIRS, pairs_of_rows
from clipfleet.results.rows import RowReader, RowStream

SCHEMA = pa.schema(
    [
        pa.field("item_index", pa.int64()),
        *(pa.field(name, pa.string()) for name in ("item_id", "uri", "status", "error_code")),
        *(pa.field(name, kind) for name, kind in zip(DECISION_COLUMNS, DECISION_TYPES, strict=True)),
    ]
)


class Rows:
    """A reader of rows with these decisions, in batches of these sizes."""

    def __init__(self, decisions: Sequence[str], *sizes: int, first: int = 0) -> None:
        self.uri = f"/{sizes}"
        rows = [
            {
                "item_index": first + number, "item_id": f"id{number}", "uri": f"/{number}.jpg",
                "decision": one, "decision_id": f"dec-{number}", "decision_reasons": [],
                "status": "failed" if one == "undecided" else "ok",
                "error_code": "timeout" if one == "undecided" else None,
            }
            for number, one in enumerate(decisions)
        ]  # fmt: skip
        self._rows = pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
        self._sizes = sizes

    def read(self, columns: Sequence[str]) -> RowStream:
        def batches() -> Any:
            start = 0
            for size in self._sizes:
                yield self._rows.slice(start, size).select(list(columns))
                start += size

        return RowStream(pa.schema([SCHEMA.field(name) for name in columns]), batches())


def pairs(*rows: Rows) -> list[dict[str, Any]]:
    old, new, *recorded = (cast("RowReader", one) for one in rows)
    found = list(pairs_of_rows(old, new, recorded[0] if recorded else None))
    assert all(batch.schema.equals(PAIRS) for batch in found)
    return [row for batch in found for row in batch.to_pylist()]


OLD = ("flag", "allow", "undecided", "allow", "review")
NEW = ("flag", "flag", "undecided", "review", "allow")


def test_batches_of_different_sizes() -> None:
    found = pairs(Rows(OLD, 5), Rows(NEW, 1, 0, 3, 1), Rows(OLD, 2, 3))

    assert [(row["old"], row["new"]) for row in found] == list(zip(OLD, NEW, strict=True))
    assert [row["item_id"] for row in found] == [f"id{number}" for number in range(5)]
    assert [row["error_code"] for row in found] == [None, None, "timeout", None, None]
    assert [row["decision_id"] for row in found] == [f"dec-{number}" for number in range(5)]


def test_without_recorded_decisions() -> None:
    found = pairs(Rows(OLD, 5), Rows(NEW, 5))

    assert {(row["recorded"], row["decision_id"]) for row in found} == {(None, None)}


def test_no_rows() -> None:
    assert pairs(Rows((), 0), Rows(())) == []


@pytest.mark.parametrize(
    "other", [Rows(NEW[:4], 4), Rows(NEW, 5, first=1), Rows((*NEW, "flag"), 5, 1)], ids=lambda one: one.uri
)
def test_rows_of_other_items_are_refused(other: Rows) -> None:
    with pytest.raises(OutputDamagedError, match="not rows of the same items"):
        pairs(Rows(OLD, 5), other)
