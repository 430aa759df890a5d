"""The source protocol, and its record batches: schema, sizes, numbering."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol, TypeVar, runtime_checkable

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.jobs import SourceDescription
from clipfleet.contract.parts import item_schema
from clipfleet.sources.uris import without_userinfo

T = TypeVar("T")

MAX_ROWS = 8192
_FIRST_ROWS = 512
PASS_ON_SECONDS = 0.5  # upper bound on waiting for a fuller batch
MAX_BYTES = 32 * 1024 * 1024  # bounds memory for lists that contain images


@runtime_checkable
class Source(Protocol):
    """A finite, ordered stream of items."""

    @property
    def description(self) -> SourceDescription:
        """Description made without reading all items; equal descriptions promise equal items."""

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Iterate over the items in batches of up to 8,192 rows; an empty batch means that the source is
        idle.

        Columns: `item_index` (int64, from 0 without gaps), `item_id`, `uri` (strings), then the columns of
        `description.extra_columns` in that order, of whatever type, and the images themselves where the
        source contains them (`parts.INLINE_COLUMN`, binary; null: fetch `uri`). All batches have one schema.
        If the source knows a version of each item, it follows (`parts.VERSION_COLUMN`, strings); it is not
        staged, see `contents.py`.
        `uri` is an absolute local path or a URL; a URL keeps its userinfo (`user:password@`), which the
        fetch needs and the part omits.

        Raises:
            SourceError: while iterating: the source cannot be read further, or has no items.
        """


def in_batches(
    rows: Iterable[T],
    size_bytes: Callable[[T], int] = lambda row: 0,
    *,
    monotonic: Callable[[], float] = time.monotonic,
) -> Iterator[list[T]]:
    """Group rows into lists of 512 at first, so that work starts early, then of up to 8,192.

    Args:
        rows: never read ahead of the current list.
        size_bytes: size of a row, if rows may be large: a list ends once it reaches 32 MiB.
        monotonic: a clock in seconds; a list of slow rows ends after half a second.
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
    *,
    named_by_uri: bool = False,
) -> pa.RecordBatch:
    """Build a batch numbered from `first_index`, with the source's columns and the inline bytes.

    A missing id, null or empty, defaults to the index as text, or to the URI without user and password. No
    URI is null.
    """
    indexes = pa.arange(first_index, first_index + len(uris))
    if item_ids is not None:
        item_ids = pc.if_else(pc.equal(item_ids, ""), None, item_ids)
    if item_ids is None or item_ids.null_count:
        names = _without_userinfo(uris) if named_by_uri else pc.cast(indexes, pa.string())
        item_ids = names if item_ids is None else pc.coalesce(item_ids, names)
    extra = extra or {}
    fields = [pa.field(name, values.type) for name, values in extra.items()]
    return pa.RecordBatch.from_arrays([indexes, item_ids, uris, *extra.values()], schema=item_schema(fields))


def _without_userinfo(uris: pa.Array) -> pa.Array:
    if not pc.any(pc.match_substring(uris, "@"), min_count=0).as_py():
        return uris
    return pa.array([without_userinfo(uri) for uri in uris.to_pylist()], pa.string())
