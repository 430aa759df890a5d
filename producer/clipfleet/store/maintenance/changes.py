"""What has changed between two versions of a dataset, for another database that follows the store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa

from clipfleet.store.committing.matching import IdSet
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.rows import PRESENT, digests, wide_id_hashes

if TYPE_CHECKING:
    import numpy as np

# A row is another one if one of them differs: the digest is of the item, the others are of its vector.
_STATE = ("digest", "embedded_at", "content_hash")
_ROWS_AT_A_TIME = 1024


def changes(before: VectorDataset | None, after: VectorDataset) -> Iterator[pa.RecordBatch | list[str]]:
    """Yield rows that are new or different, with all columns, then ids of items that are there no more.

    Compared are the rows of items that the source has. Files that both versions have are not read, so that
    this takes what a night costs; after a compaction, the ids of all rows are read once. Memory: 50 bytes per
    row that is compared.

    Args:
        before: of the same dataset; None: everything is new.
        after: a later version, or an earlier one.

    Raises:
        OutputUnavailableError: a file is missing or unreadable.
    """
    import numpy as np

    known = _Known(before, after)
    columns = after.schema.names
    for batch in after.batches(["item_id", *_STATE], where=PRESENT, with_address=True, other_than=before):
        addresses = batch["_rowaddr"].to_numpy()[known.differs(batch)]
        for start in range(0, len(addresses), _ROWS_AT_A_TIME):
            some = np.ascontiguousarray(addresses[start : start + _ROWS_AT_A_TIME])
            yield from after.take(some, columns).combine_chunks().to_batches()
    left = known.unseen()
    for start in range(0, len(left), _ROWS_AT_A_TIME):
        assert before is not None  # noqa: S101 - or nothing is known
        yield before.take(left[start : start + _ROWS_AT_A_TIME], ["item_id"])["item_id"].to_pylist()


class _Known:
    """The rows of the earlier version that may have changed."""

    def __init__(self, before: VectorDataset | None, after: VectorDataset) -> None:
        import numpy as np

        hashes, states = [np.empty((0, 2), np.uint64)], [np.empty(0, np.int64)]
        addresses = [np.empty(0, np.uint64)]
        if before is not None:
            for batch in before.batches(
                ["item_id", *_STATE], where=PRESENT, with_address=True, other_than=after
            ):
                hashes.append(wide_id_hashes(batch["item_id"]))
                states.append(_states(batch))
                addresses.append(batch["_rowaddr"].to_numpy())
        self._ids = IdSet(hashes)
        self._states = np.concatenate(states)
        self._addresses = np.concatenate(addresses)
        self._is_seen = np.zeros(len(self._states), bool)

    def differs(self, rows: pa.RecordBatch) -> np.ndarray:
        """Whether each row of the later version is new or different; bool."""
        import numpy as np

        places = self._ids.places(wide_id_hashes(rows["item_id"]))
        is_known = places >= 0
        self._is_seen[places[is_known]] = True
        differs = np.ones(len(places), bool)
        differs[is_known] = self._states[places[is_known]] != _states(rows)[is_known]
        return differs

    def unseen(self) -> np.ndarray:
        """Addresses of the rows whose ids the later version has not; uint64."""
        found: np.ndarray = self._addresses[~self._is_seen]
        return found


def _states(rows: pa.RecordBatch) -> np.ndarray:
    """64 bits of the hash of what tells whether a row has changed, int64."""
    return digests(rows, _STATE)
