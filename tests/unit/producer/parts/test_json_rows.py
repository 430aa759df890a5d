"""What becomes of a column on its way through JSON Lines, and that nothing is lost that JSON can hold."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipfleet.contract.columns import VectorType
from clipfleet.contract.parts import part_schema
from clipfleet.parts.json_rows import as_json, from_json, inferred_schema, json_line, json_lines, json_schema

MOMENT = datetime(2026, 11, 24, 12, 30, 15, 250_000, tzinfo=UTC)


def batch(kind: pa.DataType, *values: Any) -> pa.RecordBatch:
    return pa.record_batch({"x": pa.array(values, kind)})


def there_and_back(rows: pa.RecordBatch) -> pa.RecordBatch:
    lines = list(json_lines(rows))
    assert all(line.endswith("\n") and len(line.splitlines()) == 1 for line in lines)
    return from_json([json.loads(line) for line in lines], json_schema(rows.schema))


def floats(width: Literal[16, 32, 64]) -> st.SearchStrategy[float]:
    return st.floats(width=width, allow_nan=False, allow_infinity=False)


Kind = tuple[pa.DataType, st.SearchStrategy[Any]]
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
SCALARS: list[Kind] = [
    (pa.string(), TEXT),
    (pa.large_string(), TEXT),
    (pa.int8(), st.integers(-(2**7), 2**7 - 1)),
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.float16(), floats(16)),
    (pa.float32(), floats(32)),
    (pa.float64(), floats(64)),
    (pa.bool_(), st.booleans()),
    (pa.null(), st.none()),
]


def nested(
    inner: st.SearchStrategy[Kind],
) -> st.SearchStrategy[Kind]:
    def optional(one: Kind) -> st.SearchStrategy[Any]:
        return st.none() | one[1]

    return (
        inner.map(lambda one: (pa.list_(one[0]), st.lists(optional(one), max_size=3)))
        | inner.map(lambda one: (pa.list_(one[0], 2), st.lists(optional(one), min_size=2, max_size=2)))
        | inner.map(lambda one: (pa.struct({"a": one[0]}), st.fixed_dictionaries({"a": optional(one)})))
    )


KINDS = st.recursive(st.sampled_from(SCALARS), nested, max_leaves=3)


@given(st.data())
def test_what_json_can_hold_comes_back_as_it_was(data: st.DataObject) -> None:
    kind, values = data.draw(KINDS)
    rows = batch(kind, *data.draw(st.lists(st.none() | values, min_size=1, max_size=6)))

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
    line = json_line({"a": float("-inf"), "b": {"c": [float("nan")]}})
    assert json.loads(line) == {"a": None, "b": {"c": [None]}}


def test_a_schema_that_is_not_known_is_inferred_from_the_values() -> None:
    rows = [
        {"item_index": 0, "embedding": None, "price": 1, "note": None},
        {"item_index": 1, "embedding": [0.5, 0.5, 0.5], "price": 2, "zip": "007"},
    ]

    extra = [pa.field("price", pa.int64()), pa.field("note", pa.string()), pa.field("zip", pa.string())]
    assert inferred_schema(rows).equals(part_schema(3, extra))


@pytest.mark.parametrize(
    ("vector", "expected"),
    [
        ([0.5, -0.0999755859375], VectorType.FLOAT16),
        ([0.5, 0.1], VectorType.FLOAT32),
        ([1e5, 0.5], VectorType.FLOAT32),
    ],
)
def test_an_inferred_vector_is_not_rounded(vector: list[float], expected: VectorType) -> None:
    rows = [{"item_index": 0, "embedding": None}, {"item_index": 1, "embedding": vector}]

    assert inferred_schema(rows).equals(part_schema(2, vector_type=expected))


def test_a_value_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(pa.ArrowException):
        from_json([{"x": "many"}], pa.schema([pa.field("x", pa.int64())]))
