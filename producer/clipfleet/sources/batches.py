"""What a source is, and its record batches: their schema, their sizes, their numbering."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.jobs import SourceDescription
from clipfleet.contract.parts import item_schema

T = TypeVar("T")

MAX_ROWS = 8192
_FIRST_ROWS = 512
PASS_ON_SECONDS = 0.5  # so that no item waits long for others
MAX_BYTES = 32 * 1024 * 1024  # so that images inside a list keep the memory flat


class Source(Protocol):
    """A finite, ordered stream of items."""

    @property
    def description(self) -> SourceDescription:
        """What the source is, as far as it shows from outside; equal descriptions promise equal items."""

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The items, as batches of up to 8,192 rows; one without rows says that nothing came for a while.

        Columns: `item_index` (int64, from 0 without gaps), `item_id`, `uri` (strings), then the columns of
        `description.extra_columns` in that order, of whatever type, and the images themselves where the
        source holds them (`parts.INLINE_COLUMN`, binary; null: fetch `uri`). All batches have one schema.
        Where the source knows of each item what changes with its content, that follows
        (`parts.VERSION_COLUMN`, strings); it is not staged, see `contents.py`.
        `uri` is an absolute local path or a URL; a URL keeps its userinfo (`user:password@`), which the
        fetch needs and the part leaves out.

        Raises:
            SourceError: while iterating, where the source cannot be read any further or holds no items at
                all.
        """


def in_batches(
    rows: Iterable[T],
    size_bytes: Callable[[T], int] = lambda row: 0,
    *,
    monotonic: Callable[[], float] = time.monotonic,
) -> Iterator[list[T]]:
    """Lists of 512 rows at first, so that work can start early, then of up to 8,192.

    Args:
        rows: are not read ahead of the list they belong to.
        size_bytes: of a row, where rows may be large: a list ends early once they reach 32 MiB.
        monotonic: a clock in seconds; where rows come slowly, a list ends after half a second.
    """
    most = _FIRST_ROWS
    batch: list[T] = []
    held_bytes = 0
    since = monotonic()
    for row in rows:
        batch.append(row)
        held_bytes += size_bytes(row)
        if len(batch) >= most or held_bytes >= MAX_BYTES or monotonic() - since >= PASS_ON_SECONDS:
            yield batch
            batch, held_bytes, most, since = [], 0, min(2 * most, MAX_ROWS), monotonic()
    if batch:
        yield batch


def item_batch(
    first_index: int,
    item_ids: pa.Array | None,
    uris: pa.Array,
    extra: Mapping[str, pa.Array] | None = None,
) -> pa.RecordBatch:
    """A batch that is numbered from `first_index`, with the source's own columns, and the inline bytes.

    Where an id is null, or all are missing, the index as text is the id. No URI is null.
    """
    indexes = pa.array(range(first_index, first_index + len(uris)), pa.int64())
    if item_ids is None:
        item_ids = pc.cast(indexes, pa.string())
    elif item_ids.null_count:
        item_ids = pc.coalesce(item_ids, pc.cast(indexes, pa.string()))
    extra = extra or {}
    fields = [pa.field(name, values.type) for name, values in extra.items()]
    return pa.RecordBatch.from_arrays([indexes, item_ids, uris, *extra.values()], schema=item_schema(fields))
