"""Converts records without a schema (JSON objects, dicts) to batches of one inferred schema.

The schema is inferred once, from the first records. Later values that do not fit (a new field, a word in a
column of numbers) go as JSON into the column `other_fields`, which exists unless all records were sampled.
"""

from __future__ import annotations

import datetime
import json
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.parts import INLINE_COLUMN
from clipfleet.sources.batches import item_batch
from clipfleet.sources.files import ReadOptions
from clipfleet.sources.lists.columns import assign_columns
from clipfleet.sources.uris import absolute_uris
from clipfleet.wording import counted

Record = Mapping[str, Any]

OTHER_FIELDS = "other_fields"
_BYTES_FIELD = "bytes"  # default field of an image in a dict
_INT64 = range(-(2**63), 2**63)
_MISSING = object()


class RecordTable:
    """Converts records to batches of one schema, inferred from a sample: the first records, or all.

    With `may_hold_images`, any record may contain an image instead of a URL.
    """

    def __init__(
        self,
        sample: Sequence[Record],
        options: ReadOptions,
        *,
        where: str,
        base: str,
        is_all: bool,
        may_hold_images: bool = False,
    ) -> None:
        header = list(dict.fromkeys(name for record in sample for name in record))
        held = {
            number
            for number, name in enumerate(header)
            if any(isinstance(one.get(name), bytes) for one in sample)
        }
        self._columns = assign_columns(header, options, where=where, bytes_columns=held)
        self._header = header
        self._base = base
        self._types = {
            name: _common_type([record.get(header[position]) for record in sample])
            for name, position in self._columns.extra.items()
        }
        columns = self._columns
        self.url_field = "url" if columns.url is None else header[columns.url]
        self.bytes_field = _BYTES_FIELD if columns.bytes is None else header[columns.bytes]
        self._may_hold_images = may_hold_images
        self._named_by_uri = options.named_by_uri
        self._known = frozenset([*header, *([self.url_field, self.bytes_field] if may_hold_images else [])])
        self._others = None if is_all else _unused_name(OTHER_FIELDS, self._types)

    def described(self) -> dict[str, str]:
        """The assignment of columns, as `SourceDescription.options`."""
        return self._columns.described(self._header)

    @property
    def extra_columns(self) -> tuple[str, ...]:
        """Names of the columns that are copied."""
        return (*self._types, *([self._others] if self._others else []))

    def batch(self, first_index: int, records: Sequence[Record]) -> pa.RecordBatch:
        """Convert records to items; values are JSON types, or results of `plain`."""
        misfits: list[dict[str, Any]] = [
            {}
            if self._known.issuperset(record)
            else {k: v for k, v in record.items() if k not in self._known}
            for record in records
        ]
        extra = {
            name: self._extra(name, self._header[position], records, misfits)
            for name, position in self._columns.extra.items()
        }
        if self._others:
            extra[self._others] = pa.array([_json(rest) if rest else None for rest in misfits], pa.string())
        if self._may_hold_images:
            extra[INLINE_COLUMN] = pa.array([self._image(record) for record in records], pa.binary())
        return item_batch(
            first_index,
            self._ids(records),
            self._uris(first_index, records),
            extra,
            named_by_uri=self._named_by_uri,
        )

    def _image(self, record: Record) -> bytes | None:
        values = (record.get(name) for name in (self.bytes_field, self.url_field, _BYTES_FIELD))
        return next((value for value in values if isinstance(value, bytes)), None)

    def _extra(
        self, name: str, field: str, records: Sequence[Record], misfits: list[dict[str, Any]]
    ) -> pa.Array:
        kind = self._types[name]
        values = []
        for record, rest in zip(records, misfits, strict=True):
            value = _fitted(record.get(field), kind)
            if value is _MISSING:
                rest[field] = record[field]
                value = None
            values.append(value)
        return pa.array(values, kind)

    def _uris(self, first_index: int, records: Sequence[Record]) -> pa.Array:
        given = [record.get(self.url_field) for record in records]
        texts = pa.array([None if isinstance(one, bytes) else _text(one) for one in given], pa.string())
        uris = absolute_uris(pc.fill_null(pc.utf8_trim_whitespace(texts), ""), self._base)
        if not self._may_hold_images:
            return uris
        # An image without a URL still needs a name.
        numbers = range(first_index, first_index + len(records))
        names = [
            f"#{number}" if self._image(one) else "" for number, one in zip(numbers, records, strict=True)
        ]
        return pc.if_else(pc.equal(uris, ""), pa.array(names, pa.string()), uris)

    def _ids(self, records: Sequence[Record]) -> pa.Array | None:
        if self._columns.id is None:
            return None
        field = self._header[self._columns.id]
        return pa.array([_text(record.get(field)) for record in records], pa.string())


def size_bytes(record: Record) -> int:
    """Approximate memory of a record."""
    return sum(len(value) for value in record.values() if isinstance(value, bytes | str))


def plain(value: Any) -> Any:
    """Convert a Python value to JSON types; bytes are kept.

    Raises:
        TypeError: unsupported type.
    """
    if value is None or isinstance(value, str | bytes | bool):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner) for inner in value]
    if hasattr(value, "__fspath__"):
        return str(value)
    if hasattr(value, "tolist"):  # an array or a scalar of numpy
        return plain(value.tolist())
    raise TypeError(f"a value of type {type(value).__name__} cannot be stored")


def _common_type(values: Sequence[Any]) -> pa.DataType:
    """The common type of the values; text for mixed or unknown types."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int} and all(value is None or value in _INT64 for value in values):
        return pa.int64()
    if kinds and kinds <= {int, float} and float in kinds:
        return pa.float64()
    return pa.string()


def _fitted(value: Any, kind: pa.DataType) -> Any:
    """Convert the value to this type, or return `_MISSING`."""
    if value is None:
        return None
    if kind == pa.string():
        return _text(value)
    if kind == pa.bool_():
        return value if isinstance(value, bool) else _MISSING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _MISSING
    if kind == pa.float64():
        return float(value) if isinstance(value, float) or abs(value) <= 2**53 else _MISSING
    return value if isinstance(value, int) and value in _INT64 else _MISSING


def _text(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        return _json(value)
    # JSON can contain lone surrogates, text cannot.
    return value if value.isascii() else value.encode(errors="replace").decode()


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=_unprintable)
    return text if text.isascii() else text.encode(errors="replace").decode()


def _unprintable(value: Any) -> str:
    return f"({counted(len(value), 'byte')})" if isinstance(value, bytes) else str(value)


def _unused_name(name: str, taken: Mapping[str, object]) -> str:
    while name in taken:
        name += "_"
    return name
