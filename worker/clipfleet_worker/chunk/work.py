"""Selects the items of a chunk to process: all of them or, in a retry, those that failed.

Pure functions on tables. The part of a retry has kept and new rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.jobs import ErrorCode
from clipfleet.contract.parts import ItemStatus
from clipfleet.errors import OutputConflictError
from clipfleet.parts.json_rows import as_json
from clipfleet_worker.sinks import OlderPart

_HARM = (ErrorCode.CRASHED, ErrorCode.DECODE_TIMEOUT, ErrorCode.OUT_OF_MEMORY, ErrorCode.CHUNK_FAILED)


@dataclass(frozen=True, slots=True)
class ChunkWork:
    """The work on a chunk."""

    items: pa.Table  # to process, in order
    older: OlderPart | None = None  # the part to replace
    kept: pa.Table | None = None  # its rows to keep

    @property
    def is_suspect(self) -> bool:
        """Whether an item may have crashed its decoder in an earlier generation."""
        if self.older is None:
            return False
        harm = pc.is_in(self.older.rows["error_code"], pa.array(_HARM, pa.string()))
        return bool(pc.any(harm).as_py())

    def all_rows(self, fresh: pa.Table) -> pa.Table:
        """Merge kept and new rows into the whole part, in item order.

        Args:
            fresh: the new rows, of `items`.

        Raises:
            OutputConflictError: the vectors of old and new rows differ in length.
        """
        if self.kept is None or not self.kept.num_rows:
            return fresh
        if not fresh.num_rows:
            return self.kept
        fresh, kept = _with_equal_vectors(_as_read_back(fresh, self.kept), self.kept)
        # By name: an older version may have written fewer columns.
        return pa.concat_tables([fresh, kept], promote_options="default").sort_by("item_index")


def chunk_work(items: pa.Table, older: OlderPart | None, retry_codes: Sequence[str] = ()) -> ChunkWork:
    """Select the items to process.

    Args:
        items: the staged chunk.
        older: the part that a retry found in place; its rows that have not failed are kept.
        retry_codes: failed rows with other error codes are kept, too; empty: none is.
    """
    if older is None:
        return ChunkWork(items)
    is_kept = pc.not_equal(older.rows["status"], pa.scalar(ItemStatus.FAILED.value))
    if retry_codes:
        is_retried = pc.is_in(older.rows["error_code"], pa.array(retry_codes, pa.string()))
        is_kept = pc.or_(is_kept, pc.invert(is_retried))
    kept = older.rows.filter(is_kept)
    # All items that are not kept: so the part has one row per item, whatever the older one held.
    is_done = pc.is_in(items["item_index"], kept["item_index"].combine_chunks())
    return ChunkWork(items.filter(pc.invert(is_done)), older, kept)


def _as_read_back(fresh: pa.Table, kept: pa.Table) -> pa.Table:
    """Convert new rows to the types of rows that were read back: from JSON some columns are text."""
    common = set(kept.schema.names).intersection(fresh.schema.names) - {"embedding"}
    if all(kept.schema.field(name).type.equals(fresh.schema.field(name).type) for name in common):
        return fresh
    return pa.Table.from_batches([as_json(batch) for batch in fresh.to_batches()])


def _with_equal_vectors(fresh: pa.Table, kept: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Give both tables the same type of `embedding`: without any vector its length is arbitrary."""
    if "embedding" not in fresh.schema.names:
        return fresh, kept
    kinds = fresh.schema.field("embedding").type, kept.schema.field("embedding").type
    if kinds[0].equals(kinds[1]):
        return fresh, kept
    if fresh["embedding"].null_count == len(fresh):
        return _without_vectors(fresh, kinds[1]), kept
    if kept["embedding"].null_count == len(kept):
        return fresh, _without_vectors(kept, kinds[0])
    raise OutputConflictError(
        f"the part has vectors of type {kinds[1]}, new ones are {kinds[0]}: another model of this name?"
    )


def _without_vectors(rows: pa.Table, kind: pa.DataType) -> pa.Table:
    position = rows.schema.get_field_index("embedding")
    return rows.set_column(position, pa.field("embedding", kind), pa.nulls(len(rows), kind))
