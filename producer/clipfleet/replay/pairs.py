"""Rows with two decisions each, an old and a new one, in batches. Pure functions on columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.columns import DECISION_COLUMNS
from clipfleet.contract.parts import REASON_TYPE, ItemStatus
from clipfleet.errors import OutputDamagedError
from clipfleet.results.rows import RowReader

# What is read of each row.
ITEM_COLUMNS = ("item_index", "item_id", "uri", "status", "error_code")

_REASONS = pa.list_(REASON_TYPE)
CHANGES = pa.schema(  # of items that change side
    [
        pa.field("item_index", pa.int64()),
        pa.field("item_id", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("old", pa.string()),
        pa.field("new", pa.string()),
        pa.field("decision_id", pa.string()),  # of the recorded one; null: none was recorded
        pa.field("old_reasons", _REASONS),
        pa.field("new_reasons", _REASONS),
    ]
)
PAIRS = pa.schema(
    [
        *CHANGES,
        pa.field("error_code", pa.string()),  # null: the item is ok
        pa.field("recorded", pa.string()),  # the decision of `decision_id`
    ]
)

Side = tuple[pa.ChunkedArray, pa.ChunkedArray]  # decisions and their reasons


def paired(rows: pa.Table, old: Side, new: Side, *, recorded: Side | None) -> pa.RecordBatch:
    """Rows with their decisions, in `PAIRS`.

    Args:
        rows: with `ITEM_COLUMNS`.
        old: decisions and reasons.
        new: likewise.
        recorded: recorded decisions and their ids.
    """
    nothing = pa.nulls(rows.num_rows, pa.string())
    statuses, ids = (nothing, nothing) if recorded is None else recorded
    is_ok = pc.equal(rows["status"], ItemStatus.OK.value)
    columns = {
        **{name: rows[name] for name in ("item_index", "item_id", "uri")},
        "old": old[0], "old_reasons": old[1], "new": new[0], "new_reasons": new[1], "decision_id": ids,
        "recorded": statuses, "error_code": pc.if_else(is_ok, None, rows["error_code"]),
    }  # fmt: skip
    table = pa.table([columns[name] for name in PAIRS.names], schema=PAIRS)
    return table.combine_chunks().to_batches()[0] if table.num_rows else PAIRS.empty_table().to_batches()[0]


def pairs_of_rows(old: RowReader, new: RowReader, recorded: RowReader | None) -> Iterator[pa.RecordBatch]:
    """The rows of two jobs over the same vectors, with the decisions of both, see `PAIRS`.

    Args:
        old: rows that the old policy has decided.
        new: those that the new one has.
        recorded: the rows of which both had the vectors, if they have decisions of their own.

    Raises:
        OutputDamagedError: they are not rows of the same items. Otherwise see `RowReader.read`.
    """
    status, decision_id, _, reasons = DECISION_COLUMNS
    sides = [(old, (status, reasons)), (new, (*ITEM_COLUMNS[1:], status, reasons))]
    if recorded is not None:
        sides.append((recorded, (status, decision_id)))
    streams = [one.read(["item_index", *names]).batches for one, names in sides]
    for before, after, *earlier in _aligned(streams, [one.uri for one, _ in sides]):
        yield paired(
            after,
            (before[status], before[reasons]),
            (after[status], after[reasons]),
            recorded=(earlier[0][status], earlier[0][decision_id]) if earlier else None,
        )


def _aligned(
    streams: Sequence[Iterator[pa.RecordBatch]], uris: Sequence[str]
) -> Iterator[tuple[pa.Table, ...]]:
    """Rows of the same items from all streams, as many at a time as all of them have at hand."""
    held: list[pa.RecordBatch | None] = [_next(one) for one in streams]
    while present := [one for one in held if one is not None]:
        if len(present) < len(held):
            raise _different(uris)
        count = min(one.num_rows for one in present)
        slices = tuple(pa.Table.from_batches([one.slice(0, count)]) for one in present)
        if not all(one["item_index"].equals(slices[0]["item_index"]) for one in slices):
            raise _different(uris)
        yield slices
        held = [
            one.slice(count) if one.num_rows > count else _next(stream)
            for one, stream in zip(present, streams, strict=True)
        ]


def _next(stream: Iterator[pa.RecordBatch]) -> pa.RecordBatch | None:
    return next((one for one in stream if one.num_rows), None)


def _different(uris: Sequence[str]) -> OutputDamagedError:
    return OutputDamagedError(f"{' and '.join(uris)}: not rows of the same items: replay again")
