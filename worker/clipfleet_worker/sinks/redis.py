"""Rows in the ledger's own Redis: brought in slices under the claim's token, shown by its `complete`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.parts import PartCounts, PartIdentity
from clipfleet.redis_store import RedisStore, RowSlice

_ROWS_PER_SLICE = 500  # a call that writes them takes Redis a few milliseconds


class RedisSink:
    """See `clipfleet_worker.sinks.Sink`. Raises `RedisUnavailableError` where Redis is away or full."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store

    def find(self, identity: PartIdentity) -> None:
        """Nothing: rows that are visible belong to a chunk that is complete, and no such chunk is claimed."""

    def write(
        self, identity: PartIdentity, rows: pa.Table, counts: PartCounts, *, token: str = ""
    ) -> PartCounts:
        """See the protocol. If the chunk is not wanted any more, `complete` will say so too."""
        for rows_of_slice in _slices(rows):
            if self._store.write_rows(identity, token, rows_of_slice) != "written":
                break
        return counts


def _slices(rows: pa.Table) -> Iterator[RowSlice]:
    lowest = _lowest_indexes(rows)
    for start in range(0, rows.num_rows, _ROWS_PER_SLICE):
        some = rows.slice(start, _ROWS_PER_SLICE)
        plain: list[dict[str, Any]] = some.drop_columns(["embedding"]).to_pylist()
        yield RowSlice(
            rows={row["item_index"]: json.dumps(row, ensure_ascii=False) for row in plain},
            vectors=_vectors(some),
            ids={
                row["item_id"]: row["item_index"]
                for row in plain
                if lowest[row["item_id"]] == row["item_index"]
            },
        )


def _lowest_indexes(rows: pa.Table) -> dict[str, int]:
    """Of each item_id the first item_index that has it."""
    pairs = zip(rows["item_id"].to_pylist(), rows["item_index"].to_pylist(), strict=True)
    return dict(reversed(list(pairs)))


def _vectors(rows: pa.Table) -> dict[int, bytes]:
    present = rows.filter(pc.is_valid(rows["embedding"]))
    if not present.num_rows:
        return {}
    values = present["embedding"].combine_chunks().flatten().to_numpy().astype("<f2", copy=False)
    vectors = values.reshape(present.num_rows, -1)
    return {
        index: vector.tobytes()
        for index, vector in zip(present["item_index"].to_pylist(), vectors, strict=True)
    }
