"""Converts table columns to types that every reader of the results supports, JSON included. No I/O.

Booleans, numbers, text and lists of these are kept. Times and decimals become text, other nested values JSON,
with the same text for times, base64 for bytes and null for non-finite floats. No value is refused: invalid
UTF-8 is replaced. Times never become Python objects, which have neither nanoseconds nor the year 10,000.
"""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


def carried(values: pa.Array) -> pa.Array:
    """Convert a column to a type that every reader supports."""
    values = _stored(values)
    if not _is_known(values.type):
        return as_text(values)
    try:
        values.validate(full=True)
    except pa.ArrowInvalid:  # invalid UTF-8, which Arrow does not check by itself
        return pa.array(_plain(values), values.type)
    return values


def as_text(values: pa.Array) -> pa.Array:
    """Convert a column to strings; nested values become JSON."""
    values = _stored(values)
    if pa.types.is_nested(values.type):
        return pa.array([None if one is None else _json(one) for one in _plain(values)], pa.string())
    if is_binary(values.type) or _is_string(values.type):
        return _utf8(values)
    return _printed(values)


def is_binary(kind: pa.DataType) -> bool:
    """Whether the type is bytes, which may be images."""
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType) and not isinstance(kind, pa.UuidType):
        return is_binary(kind.storage_type)
    tests = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view)
    return any(test(kind) for test in tests)


def _is_known(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_list(kind) or types.is_fixed_size_list(kind):
        return _is_known(kind.value_type)
    tests = (types.is_integer, types.is_float32, types.is_float64, types.is_boolean, types.is_string)
    return any(test(kind) for test in tests)


def _is_string(kind: pa.DataType) -> bool:
    types = pa.types
    return any(test(kind) for test in (types.is_string, types.is_large_string, types.is_string_view))


def _stored(values: pa.Array) -> pa.Array:
    """The values without extension types and dictionaries."""
    while True:
        if isinstance(values.type, pa.UuidType):
            return pa.array([None if one is None else str(one) for one in values.to_pylist()], pa.string())
        if isinstance(values, pa.ExtensionArray):
            values = values.storage
        elif pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        else:
            return values


def _plain(values: pa.Array) -> list[Any]:
    """The values as JSON types, and decimals."""
    values = _stored(values)
    kind, types = values.type, pa.types
    if types.is_struct(kind):
        return _plain_structs(values)
    if types.is_map(kind):
        pair = pa.struct([("key", kind.key_type), ("value", kind.item_type)])
        maps = _plain(pc.cast(values, pa.list_(pair)))
        return [None if one is None else [list(entry.values()) for entry in one] for one in maps]
    if types.is_nested(kind):  # any kind of list
        inner = iter(_plain(values.flatten()))
        lengths = pc.list_value_length(values).to_pylist()
        return [None if length is None else list(islice(inner, length)) for length in lengths]
    if is_binary(kind):
        return [None if one is None else b64encode(one).decode() for one in values.to_pylist()]
    if _is_string(kind):
        values = _utf8(values)
    elif types.is_temporal(kind):
        values = _printed(values)
    found: list[Any] = values.to_pylist()
    if types.is_floating(kind):
        return [None if one is None or not math.isfinite(one) else one for one in found]
    return found


def _plain_structs(values: pa.Array) -> list[Any]:
    names = [field.name for field in values.type.fields]
    rows: Iterator[tuple[Any, ...]] = zip(*map(_plain, values.flatten()), strict=True)
    is_unique = len({*names}) == len(names)  # most JSON readers drop duplicate keys
    return [
        None if not is_there else dict(zip(names, row, strict=True)) if is_unique
        else list(zip(names, row, strict=True))
        for is_there, row in zip(values.is_valid().to_pylist(), rows, strict=True)
    ]  # fmt: skip


def _utf8(values: pa.Array) -> pa.Array:
    raw = pc.cast(values, pa.large_binary())
    try:
        return pc.cast(raw, pa.string())
    except pa.ArrowInvalid:
        texts = [None if one is None else one.decode(errors="replace") for one in raw.to_pylist()]
        return pa.array(texts, pa.string())


def _printed(values: pa.Array) -> pa.Array:
    try:
        return pc.cast(values, pa.string())
    except pa.ArrowInvalid:  # a time zone unknown to this machine
        naive = pc.cast(values, pa.timestamp(values.type.unit))
        return pc.binary_join_element_wise(pc.cast(naive, pa.string()), "Z", "")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
