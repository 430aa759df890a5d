"""A sample of another source: the N items whose hashes are smallest, found in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.errors import SourceError
from clipfleet.sources.batches import MAX_BYTES, MAX_ROWS, Source

_MAX_HELD_BYTES = 1 << 30  # reached only with inline images
_CUT_BYTES = 256 << 20
_HASH = "\0hash"
_ORDER = [(_HASH, "ascending"), ("item_index", "ascending")]


class SampledSource:
    """See `clipfleet.sources.Source`: `size` items of a source, in its order; all of them if it has fewer.

    The hash is of an item's id and URI, so the same items are chosen each time, a smaller sample is part of a
    larger one, and where items have ids or names of their own their order does not matter. An item without an
    id has its position for one: equal URLs would otherwise be chosen or left out together.

    `item_index` counts within the sample. Ids are those of the whole source.

    Reads the source to its end before the first batch, and holds up to `2 * size` items meanwhile.
    """

    def __init__(self, source: Source, size: int) -> None:
        self.whole_items = 0  # of the source, once it has been read
        self._source = source
        self._size = size
        described = source.description
        self.description = described.model_copy(
            update={"options": {**described.options, "sample": str(size)}}
        )

    def batches(self) -> Iterator[pa.RecordBatch]:
        chosen = self._chosen()
        if chosen is None:
            return
        chosen = chosen.sort_by("item_index").drop_columns([_HASH])
        indexes = pa.array(range(chosen.num_rows), pa.int64())
        chosen = chosen.set_column(0, chosen.schema.field("item_index"), indexes).combine_chunks()
        rows = min(MAX_ROWS, MAX_BYTES * chosen.num_rows // max(chosen.nbytes, 1))
        yield from chosen.to_batches(max_chunksize=max(rows, 1))

    def _chosen(self) -> pa.Table | None:
        """The rows with the smallest hashes, in any order; None if there are none."""
        self.whole_items = 0
        best: pa.Table | None = None
        largest = None  # hash among `size` rows: those beyond it are not chosen
        added_bytes = 0  # since the last cut
        for batch in self._source.batches():
            self.whole_items += batch.num_rows
            rows = batch.append_column(_HASH, _hashes(batch))
            if largest is not None:
                rows = rows.filter(pc.less_equal(rows[_HASH], largest))
            if not rows.num_rows:
                continue
            fresh = pa.Table.from_batches([rows])
            best = fresh if best is None else pa.concat_tables([best, fresh])
            added_bytes += fresh.nbytes
            if best.num_rows >= 2 * self._size or added_bytes >= _CUT_BYTES:
                best, added_bytes = self._cut(best), 0
                if best.num_rows == self._size:
                    largest = pc.max(best[_HASH])
        return None if best is None else self._cut(best)

    def _cut(self, rows: pa.Table) -> pa.Table:
        kept = rows.take(pc.sort_indices(rows, sort_keys=_ORDER).slice(0, self._size))
        if kept.nbytes > _MAX_HELD_BYTES:
            raise SourceError(
                f"a sample of {self._size:,} items holds more than {_MAX_HELD_BYTES >> 20:,} MiB of images: "
                "choose a smaller one"
            )
        return kept


def _hashes(batch: pa.RecordBatch) -> pa.Array:
    pairs = zip(batch["item_id"].to_pylist(), batch["uri"].to_pylist(), strict=True)
    digests = (blake2b(f"{item_id}\x1f{uri}".encode(), digest_size=8).digest() for item_id, uri in pairs)
    return pa.array(map(int.from_bytes, digests), pa.uint64())
