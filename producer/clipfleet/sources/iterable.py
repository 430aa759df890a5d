"""Items of a Python program: URLs, paths, images as bytes, or dicts with one of these and further fields.

A list (anything with a length) is sampled first, so that its description depends on its content. An iterator
is read once, item by item; `handover.py` handles those that pause. Paths are relative to the current folder.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipfleet.contract.jobs import SourceDescription
from clipfleet.errors import SourceError
from clipfleet.sources.batches import in_batches
from clipfleet.sources.files import ReadOptions
from clipfleet.sources.lists.records import Record, RecordTable, plain, size_bytes

Item = str | os.PathLike[str] | bytes | Mapping[str, Any]

NAME = "the items"
_SAMPLE_ITEMS = 8192
_DIGESTED_ITEMS = 100_000
_DIGESTED_BYTES = 256 * 1024 * 1024


class IterableSource:
    """See `clipfleet.sources.Source`.

    A list must not change while it is read. `url_column` and `id_column` name fields of dicts.

    Raises:
        SourceError: there are no items, or the first ones are invalid.
    """

    def __init__(
        self, items: Iterable[Item], options: ReadOptions, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._monotonic = monotonic
        is_list = isinstance(items, Collection)
        self.may_pause = not is_list  # an iterator may block on its next item
        rest = iter(items)
        first = list(islice(rest, _SAMPLE_ITEMS if is_list else 1))
        if not first:
            raise SourceError("there are no items")
        self._items: Iterable[Item] = items if is_list else chain(first, rest)
        self._table = RecordTable(
            [_record(item, number, options.content_field, "bytes") for number, item in enumerate(first)],
            options,
            where=NAME,
            base=options.base_in(f"{Path.cwd()}/"),
            is_all=isinstance(items, Collection) and len(items) == len(first),
            may_hold_images=True,
        )
        self.description = SourceDescription(
            kind="iterable",
            uri="python:",
            options=options.described()
            | self._table.described()
            | (_content(items) if isinstance(items, Collection) else {}),
            extra_columns=self._table.extra_columns,
        )

    def batches(self) -> Iterator[pa.RecordBatch]:
        index = 0
        for records in in_batches(self.records(), size_bytes, monotonic=self._monotonic):
            yield self.batch(index, records)
            index += len(records)

    def records(self) -> Iterator[Record]:
        """Iterate over the items as records."""
        for number, item in enumerate(self._items):
            yield _record(item, number, self._table.url_field, self._table.bytes_field)

    def batch(self, first_index: int, records: Sequence[Record]) -> pa.RecordBatch:
        """Convert records to a batch, possibly without rows."""
        return self._table.batch(first_index, records)


def _record(item: Item, number: int, url_field: str, bytes_field: str) -> Record:
    if isinstance(item, str):
        return {url_field: item}
    if isinstance(item, bytes | bytearray | memoryview):
        return {bytes_field: bytes(item)}
    try:
        if isinstance(item, Mapping):
            return {str(name): plain(value) for name, value in item.items()}
        return {url_field: os.fsdecode(os.fspath(item))}
    except TypeError as error:
        raise SourceError(f"item {number} is invalid: {error}") from None


def _content(items: Collection[Item]) -> dict[str, str]:
    """Digest that identifies a list, as `SourceDescription.options`.

    Covers only the beginning of a long list, so that work starts soon. A resumed submit compares all items.
    """
    digest = hashlib.sha256()
    hashed_bytes = 0
    for number, item in enumerate(islice(items, _DIGESTED_ITEMS)):
        if hashed_bytes > _DIGESTED_BYTES:
            break
        for name, value in _record(item, number, "", "").items():
            content = value if isinstance(value, bytes) else repr(value).encode(errors="replace")
            digest.update(b"%d:%s%d:" % (len(name), name.encode(errors="replace"), len(content)))
            digest.update(content)
            hashed_bytes += len(content)
        digest.update(b"\n")
    return {"items": str(len(items)), "sha256": digest.hexdigest()[:16]}


_ROWS_AT_ONCE = 1024


class FrameRows:
    """Rows of a data frame, in order; iterable repeatedly."""

    def __init__(self, frame: Any) -> None:
        try:
            self._table = pa.table(frame)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise SourceError(f"Arrow cannot read this {type(frame).__name__}: {error}") from error

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._table.to_batches(max_chunksize=_ROWS_AT_ONCE):
            yield from batch.to_pylist()

    def __contains__(self, row: object) -> bool:
        return any(row == own for own in self)


def is_frame(source: object) -> bool:
    """Whether it is a data frame: iterating over one yields columns, not rows."""
    return hasattr(source, "__arrow_c_stream__") and hasattr(source, "columns")
