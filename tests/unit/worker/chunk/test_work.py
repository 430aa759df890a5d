"""What a retry works on, and how old and new rows make up one part."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

import pyarrow as pa
import pytest

from clipfleet.contract.parts import part_schema
from clipfleet.errors import OutputConflictError
from clipfleet.parts.json_rows import as_json
from clipfleet_worker.chunk.work import chunk_work
from clipfleet_worker.sinks import OlderPart

ITEMS = pa.table({"item_index": [10, 11, 12, 13], "uri": ["/a", "/b", "/c", "/d"]})


def row(item_index: int, code: str | None = None, vector: Sequence[float] | None = None) -> dict[str, Any]:
    status = "failed" if code else "ok"
    base = {"item_index": item_index, "item_id": "x", "uri": "/", "status": status}
    return {**base, "error_code": code, "embedding": vector}


def table(*rows: dict[str, Any], dimension: int = 2) -> pa.Table:
    return pa.Table.from_pylist(list(rows), part_schema(dimension))


OLD = table(row(10), row(11, "not_found"), row(12, "timeout"), row(13))


def test_without_an_older_part_everything_is_to_be_done() -> None:
    work = chunk_work(ITEMS, None)

    assert work.items is ITEMS
    assert work.all_rows(OLD) is OLD


def test_failed_rows_are_run_again() -> None:
    work = chunk_work(ITEMS, OlderPart(OLD, "v"))

    assert work.items["uri"].to_pylist() == ["/b", "/c"]
    whole = work.all_rows(table(row(11), row(12)))
    assert whole["item_index"].to_pylist() == [10, 11, 12, 13]
    assert whole["status"].to_pylist() == ["ok"] * 4


def test_rows_with_other_codes_stay() -> None:
    work = chunk_work(ITEMS, OlderPart(OLD, "v"), ["timeout", "server_error"])

    assert work.items["uri"].to_pylist() == ["/c"]
    assert work.all_rows(table(row(12)))["error_code"].to_pylist() == [None, "not_found", None, None]


def test_there_may_be_nothing_to_do() -> None:
    work = chunk_work(ITEMS, OlderPart(OLD, "v"), ["chunk_failed"])

    assert work.items.num_rows == 0
    assert work.all_rows(OLD.slice(0, 0)).equals(OLD)


def test_an_item_that_the_older_part_lacks_gets_its_row() -> None:
    assert chunk_work(ITEMS, OlderPart(OLD.slice(0, 2), "v")).items["uri"].to_pylist() == ["/b", "/c", "/d"]


def test_the_length_of_vectors_comes_from_the_rows_that_have_one() -> None:
    # Given a part that was given up before the model was known
    unknown = table(*(row(number, "model_unavailable") for number in (10, 11)), row(12), dimension=1)
    vectors = table(row(10, vector=[0.5, 0.25]), row(11, vector=[1.0, 0.0]), row(13, vector=[0.0, 1.0]))

    whole = chunk_work(ITEMS, OlderPart(unknown, "v")).all_rows(vectors)

    assert whole.schema.field("embedding").type == vectors.schema.field("embedding").type
    assert [value and list(value) for value in whole["embedding"].to_pylist()] == [
        [0.5, 0.25], [1.0, 0.0], None, [0.0, 1.0],
    ]  # fmt: skip


def test_the_length_stays_where_the_new_rows_have_no_vector() -> None:
    old = table(row(10, vector=[0.5, 0.25]), row(11, "timeout"))
    fresh = table(row(11, "model_unavailable"), dimension=1)

    whole = chunk_work(ITEMS, OlderPart(old, "v")).all_rows(fresh)

    assert whole.schema.field("embedding").type == old.schema.field("embedding").type
    assert whole["embedding"].null_count == 1


def test_vectors_of_two_lengths_make_no_part() -> None:
    old = table(row(10, vector=[0.5, 0.25]), row(11, "timeout"))

    with pytest.raises(OutputConflictError, match="another model"):
        chunk_work(ITEMS, OlderPart(old, "v")).all_rows(table(row(11, vector=[1.0, 0.0, 0.0]), dimension=3))


def test_a_part_of_an_older_version_may_lack_columns() -> None:
    old = OLD.drop_columns(["model_fingerprint"])

    whole = chunk_work(ITEMS, OlderPart(old, "v")).all_rows(table(row(11), row(12)))

    assert whole.column_names == OLD.column_names
    assert whole.num_rows == 4


def test_columns_that_came_back_from_json_as_text_fit_the_new_rows() -> None:
    extra = [pa.field("day", pa.date32()), pa.field("raw", pa.binary()), pa.field("shelf", pa.int64())]
    typed = pa.Table.from_pylist(
        [row(10) | {"day": date(2026, 11, 25), "raw": b"\xff", "shelf": 7}, row(11, "timeout")],
        part_schema(2, extra),
    )
    read_back = pa.Table.from_batches([as_json(batch) for batch in typed.to_batches()])
    work = chunk_work(ITEMS.slice(0, 2), OlderPart(read_back, ""))

    whole = work.all_rows(typed.slice(0, 1).set_column(0, "item_index", pa.array([11])))

    assert whole["day"].to_pylist() == ["2026-11-25"] * 2
    assert whole["raw"].to_pylist() == ["/w=="] * 2
    assert whole["shelf"].to_pylist() == [7, 7]
