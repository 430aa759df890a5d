"""What becomes of a column on its way through JSON Lines, and that nothing is lost that JSON can hold."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clipfleet.contract.parts import part_schema
from clipfleet.parts.json_rows import as_json, from_json, inferred_schema, json_line, json_lines, json_schema

MOMENT = datetime(2026, 11, 24, 12, 30, 15, 250_000, tzinfo=UTC)


def batch(kind: pa.DataType, *values: Any) -> pa.RecordBatch:
    return pa.record_batch({"x": pa.array(values, kind)})


def there_and_back(rows: pa.RecordBatch) -> pa.RecordBatch:
    lines = list(json_lines(rows))
    assert all(line.endswith("\n") and len(line.splitlines()) == 1 for line in lines)
    return from_json([json.loads(line) for line in lines], json_schema(rows.schema))


@pytest.mark.parametrize(
    "rows",
    [
        batch(pa.string(), 'a, "b"\n\u732b \u2028\u2029\x85\r\x00', "", None),
        batch(pa.large_string(), "007"),
        batch(pa.int64(), 2**63 - 1, -(2**63), None),
        batch(pa.uint64(), 2**64 - 1),
        batch(pa.int8(), -128),
        batch(pa.float64(), 0.1, 1e308, 5e-324, -0.0, None),
        batch(pa.float32(), 0.1, None),
        batch(pa.float16(), 0.1, 65504.0, None),
        batch(pa.bool_(), True, False, None),
        batch(pa.list_(pa.float16(), 2), [0.1, -1.0], None),
        batch(pa.list_(pa.string()), ["a", None], [], None),
        batch(pa.struct({"a": pa.int64(), "b": pa.list_(pa.bool_())}), {"a": 1, "b": [True]}, None),
        batch(pa.null(), None, None),
    ],
    ids=lambda rows: str(rows.schema.field("x").type),
)
def test_what_json_can_hold_comes_back_as_it_was(rows: pa.RecordBatch) -> None:
    back = there_and_back(rows)

    assert back.schema.equals(rows.schema)
    assert back.equals(rows)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (batch(pa.binary(), b"\xff\xd8", b"", None), ["/9g=", "", None]),
        (batch(pa.timestamp("us", tz="UTC"), MOMENT, None), ["2026-11-24 12:30:15.250000Z", None]),
        (batch(pa.timestamp("ns"), 1), ["1970-01-01 00:00:00.000000001"]),
        (batch(pa.date32(), MOMENT.date()), ["2026-11-24"]),
        (batch(pa.decimal128(10, 2), Decimal("12.50")), ["12.50"]),
        (batch(pa.dictionary(pa.int8(), pa.string()), "a", None, "a"), ["a", None, "a"]),
        (batch(pa.list_(pa.date32()), [MOMENT.date(), None], None), ['["2026-11-24", null]', None]),
        (batch(pa.map_(pa.string(), pa.int64()), [("a", 1)]), ['[["a", 1]]']),
    ],
    ids=lambda value: str(value.schema.field("x").type) if isinstance(value, pa.RecordBatch) else "",
)
def test_the_rest_becomes_text(rows: pa.RecordBatch, expected: list[str | None]) -> None:
    assert as_json(rows).column("x").to_pylist() == expected
    assert there_and_back(rows).schema.field("x").type == pa.string()


def test_a_float_that_is_no_number_is_null() -> None:
    rows = batch(pa.list_(pa.float64()), [float("nan"), 1.0], [float("inf")])

    assert [json.loads(line)["x"] for line in json_lines(rows)] == [[None, 1.0], [None]]
    assert json.loads(json_line({"a": float("-inf"), "b": {"c": [float("nan")]}})) == {
        "a": None,
        "b": {"c": [None]},
    }


def test_vectors_are_exact() -> None:
    numbers = np.random.default_rng(3).standard_normal((50, 8)).astype(np.float16)
    kind = pa.list_(pa.float16(), 8)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(numbers.ravel()), 8)

    back = there_and_back(pa.record_batch([vectors], pa.schema([pa.field("embedding", kind)])))

    assert back.column("embedding").flatten().to_numpy().tobytes() == numbers.tobytes()


def test_a_schema_that_is_not_known_is_inferred_from_the_values() -> None:
    rows = [
        {"item_index": 0, "embedding": None, "price": 1, "note": None},
        {"item_index": 1, "embedding": [0.5, 0.5, 0.5], "price": 2, "zip": "007"},
    ]

    extra = [pa.field("price", pa.int64()), pa.field("note", pa.string()), pa.field("zip", pa.string())]
    assert inferred_schema(rows).equals(part_schema(3, extra))


def test_a_value_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(pa.ArrowException):
        from_json([{"x": "many"}], pa.schema([pa.field("x", pa.int64())]))
