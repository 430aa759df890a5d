"""Finds the row of one item by its id, index or URI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.errors import JobNotFoundError
from clipfleet.parts.json_rows import json_dicts
from clipfleet.results.rows import RowReader
from clipfleet.sources.uris import has_scheme, local_uri

_LOOKED_AT = ("item_index", "item_id", "uri")
_INDEX_DIGITS = 18  # of an int64
_LISTED = 10


@dataclass(frozen=True, slots=True)
class FoundRow:
    """The first row of an item, and the others that the same text names."""

    row: dict[str, Any]  # of JSON types
    matched: str  # the column: `item_id`, `uri` or `item_index`
    count: int = 1  # rows that match
    others: Sequence[int] = ()  # `item_index` of the next few


@dataclass(slots=True)
class _Matches:
    count: int = 0
    first: list[int] = field(default_factory=list)

    def add(self, batch: pa.RecordBatch, column: str, texts: Sequence[str]) -> None:
        matching = pc.is_in(batch[column], value_set=pa.array(texts, batch[column].type))
        indexes = batch["item_index"].filter(matching)
        self.count += len(indexes)
        self.first += indexes.slice(0, _LISTED + 1 - len(self.first)).to_pylist()


def find_row(reader: RowReader, item: str) -> FoundRow:
    """Find the row of an item. An id has priority over a URI, and both over an index.

    An index whose item has no other id is found without reading other rows. A relative path is a URI, too.

    Raises:
        JobNotFoundError: no such row, or not yet. Otherwise see `RowReader.read`.
    """
    at_index = None
    if item.isascii() and item.isdecimal() and len(item) <= _INDEX_DIGITS:
        at_index = reader.row_at(int(item))
        if at_index is not None and at_index["item_id"][0].as_py() == item:
            return FoundRow(_as_dict(at_index), "item_index")
    ids, uris = _Matches(), _Matches()
    uris_meant = [item] if has_scheme(item) else [item, local_uri(str(Path(item).absolute()))]
    for batch in reader.read(_LOOKED_AT).batches:
        ids.add(batch, "item_id", [item])
        uris.add(batch, "uri", uris_meant)
    for column, matches in (("item_id", ids), ("uri", uris)):
        if matches.count:
            first, *others = matches.first
            row = reader.row_at(first)
            if row is not None:  # else it was removed meanwhile
                return FoundRow(_as_dict(row), column, matches.count, others)
    if at_index is not None:
        return FoundRow(_as_dict(at_index), "item_index")
    raise JobNotFoundError(f"{reader.uri}: no row of item {item!r}; give its id, its index or its URI")


def _as_dict(row: pa.RecordBatch) -> dict[str, Any]:
    return next(json_dicts(row))
