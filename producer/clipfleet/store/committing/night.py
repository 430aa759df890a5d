"""What a night has found: rows of a job's parts, and the items that are gone. No I/O of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.parts import PART_COLUMNS, ItemStatus
from clipfleet.contract.stores import (
    DIGEST,
    KNOWN_ETAG,
    KNOWN_LAST_MODIFIED,
    LISTED_VERSION,
    SIZE_BYTES,
    STORE_COLUMNS,
)
from clipfleet.store.rows import TIME_TYPE, store_column_name, stored_type

# Columns of a dataset and those of a part that fill them.
_FROM_PARTS = {
    "item_id": "item_id", "uri": "uri", "version": LISTED_VERSION, "etag": KNOWN_ETAG,
    "last_modified": KNOWN_LAST_MODIFIED, "content_hash": "content_hash", "size_bytes": SIZE_BYTES,
    "width": "width", "height": "height", "digest": DIGEST, "embedding": "embedding",
}  # fmt: skip
# What a row takes from an item whose image is the same; the rest stays as it is, also the size, which the
# item lacks if nothing was read.
RENEWED = ("uri", "version", "etag", "last_modified", "digest")

Batches = Callable[[], Iterable[pa.RecordBatch]]


@dataclass(frozen=True)
class Night:
    """One commit's worth of changes. The batches are read several times, in the same order."""

    rows: Batches  # of the parts of the job, all columns
    gone: Batches  # `item_id`, and `digest` as it was when the item was found to be gone
    listed_at: datetime  # see `StoreTarget`
    embedded_at: datetime
    keep_gone_days: int = 0

    @property
    def kept_since(self) -> datetime:
        """Rows that were gone before this time are deleted."""
        try:
            return self.listed_at - timedelta(days=self.keep_gone_days)
        except OverflowError:
            return datetime.min.replace(tzinfo=UTC)


def own_fields(part_schema: pa.Schema) -> list[pa.Field[Any]]:
    """The source's own columns of a part, as a dataset has them."""
    return [
        pa.field(name, stored_type(part_schema.field(theirs).type))
        for name, theirs in _own(part_schema).items()
    ]


def _own(part_schema: pa.Schema) -> dict[str, str]:
    """The source's own columns of a part, by their names in a dataset."""
    ours = {*PART_COLUMNS, *STORE_COLUMNS}
    return {store_column_name(name): name for name in part_schema.names if name not in ours}


def of_status(rows: pa.RecordBatch, status: ItemStatus) -> pa.RecordBatch:
    """The rows with this status."""
    return rows.filter(pc.equal(rows["status"], status.value))


def as_stored(rows: pa.RecordBatch, schema: pa.Schema, night: Night) -> pa.RecordBatch:
    """Rows of a part as rows of a dataset.

    Args:
        rows: that are ok.
        schema: of the dataset.
        night: which they are of.
    """
    count = rows.num_rows
    filled_from = _FROM_PARTS | _own(rows.schema)
    times = {"embedded_at": night.embedded_at, "listed_at": night.listed_at, "gone_at": None}

    def column(wanted: pa.Field[Any]) -> pa.Array:
        if wanted.name in times:
            return pa.repeat(pa.scalar(times[wanted.name], TIME_TYPE), count)
        name = filled_from.get(wanted.name)
        if name is None or name not in rows.schema.names:
            return pa.nulls(count, wanted.type)
        found = rows[name]
        if found.null_count == count:  # vectors of a part without any may have another length
            return pa.nulls(count, wanted.type)
        return found if found.type.equals(wanted.type) else found.cast(wanted.type)

    return pa.RecordBatch.from_arrays([column(one) for one in schema], schema=schema)
