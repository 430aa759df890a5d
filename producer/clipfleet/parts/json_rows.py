"""Converts rows to JSON Lines and back. Types without a JSON equivalent become text. No I/O.

Bytes become base64, dates and times ISO 8601, non-finite floats null.
"""

from __future__ import annotations

import json
import math
import struct
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from clipfleet.contract.columns import VectorType
from clipfleet.contract.parts import ACCEPTED_TYPE, PART_COLUMNS, UNKNOWN_DIMENSION, part_schema

# Valid in JSON, but many programs treat them as line ends.
_LINE_ENDS = {"\u0085": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_SLICE_ROWS = 512  # converted to Python objects at a time, where vectors are large


def json_type(kind: pa.DataType) -> pa.DataType:
    """Type of a column after a round trip: its own if JSON has it, else string."""
    if pa.types.is_dictionary(kind):
        return json_type(kind.value_type)
    return kind if _is_json(kind) else pa.string()


def json_schema(schema: pa.Schema) -> pa.Schema:
    """Schema of the columns after a round trip."""
    return pa.schema([field.with_type(json_type(field.type)) for field in schema])


def as_json(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Convert rows to `json_schema`."""
    schema = json_schema(batch.schema)
    if schema.equals(batch.schema):
        return batch
    columns = [_converted(column, field.type) for column, field in zip(batch.columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def json_lines(batch: pa.RecordBatch) -> Iterator[str]:
    """Convert rows to lines with their ends; keys in column order, nulls included."""
    return map(json_line, json_dicts(batch))


def json_dicts(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Convert rows to dicts of JSON types."""
    for start in range(0, batch.num_rows, _SLICE_ROWS):
        yield from as_json(batch.slice(start, _SLICE_ROWS)).to_pylist()


def json_line(row: dict[str, Any]) -> str:
    """Format a row of JSON types as a line with its end."""
    try:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False)
    except ValueError:
        line = json.dumps(_finite(row), ensure_ascii=False)
    for end, escaped in _LINE_ENDS.items():
        line = line.replace(end, escaped)
    return line + "\n"


def from_json(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    """Invert `json_lines`: build a batch in a schema of JSON types; missing keys become null.

    Raises:
        pa.ArrowException: a value does not fit its column.
    """
    return pa.RecordBatch.from_pylist(list(rows), schema=schema)


def inferred_schema(rows: Iterable[dict[str, Any]]) -> pa.Schema:
    """Infer the schema of a part without a footer: clipfleet's columns as defined, others by their values.

    Vectors are float32 if the first one is not exactly float16. `accepted` may be ours or the source's.
    """
    vector: list[float] = []
    others: dict[str, list[Any]] = {}
    for row in rows:
        vector = vector or row.get("embedding") or []
        for name in row:
            if name not in PART_COLUMNS:
                others.setdefault(name, []).append(row[name])
    extra = [pa.field(name, _value_type(values)) for name, values in others.items()]
    vector_type = VectorType.FLOAT16 if all(map(_is_float16, vector)) else VectorType.FLOAT32
    return part_schema(len(vector) or UNKNOWN_DIMENSION, extra, vector_type=vector_type)


def _is_float16(number: float) -> bool:
    try:
        return bool(struct.unpack("e", struct.pack("e", number))[0] == number)
    except OverflowError:
        return False
    except struct.error:  # no number: reading it fails
        return True


def _value_type(values: list[Any]) -> pa.DataType:
    kind = pa.array(values).type
    if pa.types.is_list(kind) and pa.types.is_null(kind.value_type):
        return ACCEPTED_TYPE  # of lists that are all empty
    return pa.string() if pa.types.is_null(kind) else kind


def _is_json(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return all(_is_json(field.type) for field in kind.fields)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _is_json(kind.value_type)
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_null(kind)
    )


def _converted(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if column.type.equals(kind):
        return column
    if pa.types.is_dictionary(column.type):
        return _converted(column.dictionary_decode(), kind)
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        texts = [None if value is None else b64encode(value).decode() for value in column.to_pylist()]
        return pa.array(texts, kind)
    try:
        return column.cast(kind)
    except pa.ArrowNotImplementedError:  # nested, with a type inside that JSON lacks
        texts = [
            None if value is None else json.dumps(_finite(value), ensure_ascii=False, default=str)
            for value in column.to_pylist()
        ]
        return pa.array(texts, kind)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list) else value
