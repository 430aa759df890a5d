"""Rows of a store: their columns, hashes of ids and digests of items."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from clipfleet.store.rows import OWN_COLUMNS, digests, id_hashes, store_column_name, store_schema

ITEM: dict[str, Any] = {"item_id": "a", "uri": "/a.jpg", "version": "5 7", "shelf": 3, "tags": ["x", None]}


def digest(**change: Any) -> int:
    batch = pa.RecordBatch.from_pylist([ITEM | change])
    return int(digests(batch, [*ITEM])[0])


def test_a_schema_has_our_columns_then_those_of_the_source() -> None:
    schema = store_schema(8, [pa.field("shelf", pa.string())])

    assert schema.names == [*OWN_COLUMNS, "shelf"]
    assert schema.field("embedding").type == pa.list_(pa.float16(), 8)


def test_a_column_of_the_source_gives_way_to_ours() -> None:
    assert [store_column_name(name) for name in ("etag", "_distance", "shelf")] == [
        "source_etag", "source__distance", "shelf",
    ]  # fmt: skip


def test_equal_ids_have_equal_hashes() -> None:
    found = id_hashes(pa.array(["a", "żółw", "a"]))

    assert found[0] == found[2] != found[1]


def test_a_digest_lasts() -> None:
    """Stores hold them: with others, every item would be read once more."""
    item = pa.RecordBatch.from_pylist([{"item_id": "a", "n": 3}])

    assert digests(item, ["item_id", "n"]).tolist() == [507977843969434791]


@pytest.mark.parametrize(
    "change",
    [{"item_id": "b"}, {"uri": "/b"}, {"version": None}, {"shelf": 4}, {"tags": ["x"]}, {"tags": None}],
)
def test_any_change_of_an_item_changes_its_digest(change: dict[str, Any]) -> None:
    assert digest() == digest()
    assert digest(**change) != digest()


def test_the_end_of_a_value_is_part_of_it() -> None:
    assert digest(item_id="ab", uri="c") != digest(item_id="a", uri="bc")


def test_no_items() -> None:
    empty = pa.RecordBatch.from_pylist([ITEM]).slice(1)

    assert len(digests(empty, ["item_id"])) == len(id_hashes(empty["item_id"])) == 0
