"""What changes side is counted, and the most severe changes come first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from clipfleet.contract.policies import DecisionStatus
from clipfleet.replay.comparing import Comparison, by_severity
from clipfleet.replay.pairs import CHANGES, PAIRS


def batch(*decisions: tuple[str, str], first: int = 0, **values: Any) -> pa.RecordBatch:
    rows = [
        {
            "item_index": first + number, "item_id": f"id{first + number}", "uri": "/", "old": old,
            "new": new, "old_reasons": [], "new_reasons": [], **values,
        }
        for number, (old, new) in enumerate(decisions)
    ]  # fmt: skip
    return pa.RecordBatch.from_pylist(rows, schema=PAIRS)


def compared(*batches: pa.RecordBatch, most_shown: int = 10) -> tuple[Comparison, list[dict[str, Any]]]:
    found = Comparison(iter(batches), most_shown)
    changes = list(found.changes())
    assert all(one.schema.equals(CHANGES) for one in changes)
    return found, [row for one in changes for row in one.to_pylist()]


def test_all_pairs_are_counted_and_changes_are_in_the_order_of_the_items() -> None:
    found, changes = compared(
        batch(("allow", "allow"), ("allow", "review"), ("flag", "allow")),
        batch(("allow", "allow"), ("allow", "flag"), first=3),
    )

    assert found.counts == {
        ("allow", "allow"): 2, ("allow", "review"): 1, ("flag", "allow"): 1, ("allow", "flag"): 1
    }  # fmt: skip
    assert [row["item_index"] for row in changes] == [1, 2, 4]


def test_the_most_severe_changes_are_shown_first() -> None:
    pairs = [(old.value, new.value) for old in DecisionStatus for new in DecisionStatus if old != new]
    found, changes = compared(batch(*pairs), batch(*pairs, first=100), most_shown=5)

    assert len(changes) == 2 * len(pairs)
    shown = [(row["old"], row["new"]) for row in found.shown]
    assert shown == [("flag", "allow")] * 2 + [("allow", "flag")] * 2 + [("flag", "review")]
    assert [row["item_index"] % 100 for row in found.shown[:2]] == [pairs.index(("flag", "allow"))] * 2
    last = sorted(pairs, key=by_severity)[-2:]
    assert set(last) == {("review", "undecided"), ("undecided", "review")}


def test_failed_items_are_counted_apart_with_an_example() -> None:
    failed = [("undecided", "undecided")] * 2
    found, changes = compared(
        batch(("allow", "allow")),
        batch(*failed, first=1, error_code="timeout"),
        batch(failed[0], first=3, error_code="not_found"),
    )

    assert changes == []
    assert found.failed == {"timeout": 2, "not_found": 1}
    assert found.examples == {"timeout": "id1", "not_found": "id3"}


def test_recorded_decisions_that_are_not_the_old_ones_are_counted() -> None:
    found, _ = compared(
        batch(("allow", "allow"), ("flag", "flag"), recorded="flag", decision_id="dec-1"),
        batch(("allow", "allow"), first=2),
    )

    assert found.decided_otherwise == 1


def test_only_what_is_shown_is_kept() -> None:
    held = []

    def many() -> Iterator[pa.RecordBatch]:
        for number in range(50):
            made = batch(*[("allow", "flag")] * 100, first=100 * number)
            held.append(made)
            yield made

    found = Comparison(many(), 3)
    for number, _ in enumerate(found.changes(), 1):
        assert len(held) == number  # one batch is read at a time

    assert [row["item_index"] for row in found.shown] == [0, 1, 2]
