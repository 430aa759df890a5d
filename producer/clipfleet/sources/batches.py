"""The record batches of a source: their schema, their sizes, their numbering."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

T = TypeVar("T")

MAX_ROWS = 8192
_FIRST_ROWS = 512


def item_schema(extra_columns: Sequence[str] = ()) -> pa.Schema:
    """Schema of the batches of a source, and of staged files."""
    return pa.schema(
        [
            pa.field("item_index", pa.int64(), nullable=False),
            pa.field("item_id", pa.string(), nullable=False),
            pa.field("uri", pa.string(), nullable=False),
            *(pa.field(name, pa.string()) for name in extra_columns),
        ]
    )


def in_batches(rows: Iterable[T]) -> Iterator[list[T]]:
    """Lists of 512 rows at first, so that work can start early, then of up to 8,192."""
    iterator = iter(rows)
    size = _FIRST_ROWS
    while batch := list(islice(iterator, size)):
        yield batch
        size = min(2 * size, MAX_ROWS)


def item_batch(
    first_index: int, item_ids: pa.Array | None, uris: pa.Array, extra: dict[str, pa.Array] | None = None
) -> pa.RecordBatch:
    """A batch that is numbered from `first_index`; without ids the index as text is the id."""
    indexes = pa.array(range(first_index, first_index + len(uris)), pa.int64())
    ids = pc.cast(indexes, pa.string()) if item_ids is None else item_ids
    extra = extra or {}
    return pa.RecordBatch.from_arrays([indexes, ids, uris, *extra.values()], schema=item_schema(list(extra)))
