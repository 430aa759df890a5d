"""Rows in the ledger's own Redis: stored in slices under the claim's token, made visible by `complete`."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.parts import PartCounts, PartIdentity
from clipfleet.ledger.answers import WriteAnswer
from clipfleet.ledger.row_store import RedisStore, RowSlice
from clipfleet.outputs.folder import Confirm, unconditionally
from clipfleet.parts.json_rows import json_lines, json_schema
from clipfleet.results.redis_rows import rows_at
from clipfleet_worker.sinks import OlderPart

_ROWS_PER_SLICE = 500  # a call that stores them takes Redis a few milliseconds


class RedisSink:
    """See `clipfleet_worker.sinks.Sink`. Raises `RedisUnavailableError` if Redis is down or full."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store

    def find(self, identity: PartIdentity) -> None:
        """None: visible rows belong to a complete chunk, and such a chunk is not claimed."""

    def stored(self, identity: PartIdentity) -> None:
        """None: rows are visible once their chunk is complete."""

    def older(self, identity: PartIdentity) -> OlderPart | None:
        """Rows of an earlier generation, without a version: the ledger refuses rows of an older claim."""
        indexes = self._store.chunk(identity.job_id, identity.chunk_id)
        rows = None if indexes is None else rows_at(self._store, identity.job_id, indexes)
        return None if rows is None else OlderPart(rows, "")

    def write(
        self,
        identity: PartIdentity,
        rows: pa.Table,
        counts: PartCounts,
        *,
        over: OlderPart | None = None,
        token: str = "",
        confirm: Confirm = unconditionally,
    ) -> PartCounts:
        """Store rows under the token. Nothing to confirm: the ledger refuses rows without a valid claim."""
        for rows_of_slice in _slices(rows):
            if self._store.write_rows(identity, token, rows_of_slice) is not WriteAnswer.WRITTEN:
                break
        return counts


def _slices(rows: pa.Table) -> Iterator[RowSlice]:
    lowest = _lowest_indexes(rows)
    plain = rows.drop_columns(["embedding"])
    schema = json_schema(plain.schema.remove_metadata())
    for start in range(0, rows.num_rows, _ROWS_PER_SLICE):
        some = rows.slice(start, _ROWS_PER_SLICE)
        batches = plain.slice(start, _ROWS_PER_SLICE).to_batches()
        lines = [line.rstrip("\n") for batch in batches for line in json_lines(batch)]
        indexes, ids = some["item_index"].to_pylist(), some["item_id"].to_pylist()
        yield RowSlice(
            schema=schema,
            rows=dict(zip(indexes, lines, strict=True)),
            vectors=_vectors(some),
            ids={name: index for name, index in zip(ids, indexes, strict=True) if lowest[name] == index},
        )


def _lowest_indexes(rows: pa.Table) -> dict[str, int]:
    """The first item_index of each item_id."""
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
