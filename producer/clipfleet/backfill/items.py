"""The items of a backfill: as the source lists them, and those of them that a job runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipfleet.contract.jobs import SourceDescription
from clipfleet.contract.parts import INLINE_COLUMN
from clipfleet.errors import SourceError
from clipfleet.sources.batches import MAX_ROWS, Source

_IMAGE_ROWS = 16  # rows per batch with images, to bound memory
_READ_BYTES = 1 << 20
_POSITION = r"#\d+$"  # of the URI of an image that has neither an id nor a URL

OnListed = Callable[[int], object]


class ListedItems:
    """All items of a source, each with a name that does not depend on its position. See `Source`."""

    def __init__(self, source: Source, on_listed: OnListed) -> None:
        """Nothing is read yet; `on_listed` is called with the number of items so far, after each batch."""
        self._source = source
        self._on_listed = on_listed
        self.description = source.description

    def batches(self) -> Iterator[pa.RecordBatch]:
        count = 0
        for batch in self._source.batches():
            _require_names(batch)
            yield batch
            count += batch.num_rows
            self._on_listed(count)


def _require_names(batch: pa.RecordBatch) -> None:
    """Raise for an image in the source itself whose only name is its position."""
    if INLINE_COLUMN not in batch.schema.names:
        return
    is_nameless = pc.and_(
        pc.and_(batch[INLINE_COLUMN].is_valid(), pc.equal(batch["item_id"], batch["uri"])),
        pc.match_substring_regex(batch["uri"], _POSITION),
    )
    if pc.any(is_nameless, min_count=0).as_py():
        raise SourceError(
            "the source contains images without an id, and a store finds an item again by its id: give each "
            "one an id, in a column `id` or with `id_column=`"
        )


class ComparedItems:
    """The items that a job of a store runs, from the file that `Comparing.run` has written. See `Source`."""

    def __init__(
        self, path: Path, description: SourceDescription, alive: Callable[[], object] = lambda: None
    ) -> None:
        """Nothing is read yet.

        Args:
            path: of the file.
            description: of the whole source.
            alive: called after each batch.
        """
        self.path = path
        self.description = description
        self._alive = alive

    def batches(self) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(self.path, pre_buffer=False, buffer_size=_READ_BYTES) as file:
            rows = _IMAGE_ROWS if INLINE_COLUMN in file.schema_arrow.names else MAX_ROWS
            for batch in file.iter_batches(rows, use_threads=False):
                yield batch
                self._alive()
