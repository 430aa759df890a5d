"""What a dataset knows of its items, in arrays: 25 bytes per row. For comparisons with a whole source."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from clipfleet.store.dataset import Alive, VectorDataset
from clipfleet.store.rows import id_hashes

if TYPE_CHECKING:
    import numpy as np

_COLUMNS = ("item_id", "digest", "version", "listed_at", "gone_at")


@dataclass(frozen=True)
class KnownItems:
    """The rows of a dataset at one version, in the order of the hashes of their ids."""

    hashes: np.ndarray  # uint64, sorted; see `id_hashes`
    digests: np.ndarray  # int64
    addresses: np.ndarray  # uint64, see `VectorDataset.take`
    is_certain: np.ndarray  # bool: its version is known, so an equal digest means that nothing has changed
    is_gone: np.ndarray = field(repr=False)  # bool: the source had it no more
    listed_at: datetime | None  # the newest of all rows; None: there are no rows

    def __len__(self) -> int:
        return len(self.hashes)

    def places(self, hashes: np.ndarray) -> np.ndarray:
        """The position of each hash in these arrays, int64; -1: not known."""
        import numpy as np

        if not len(self.hashes):
            return np.full(len(hashes), -1)
        found = np.searchsorted(self.hashes, hashes)
        found[found == len(self.hashes)] = 0
        return np.where(self.hashes[found] == hashes, found, -1)


def known_items(dataset: VectorDataset | None, alive: Alive = lambda: None) -> KnownItems:
    """Read what a dataset knows; None: there is no dataset yet."""
    import numpy as np

    if dataset is None:
        none = np.empty(0, bool)
        no_hashes, no_digests = np.empty(0, np.uint64), np.empty(0, np.int64)
        return KnownItems(no_hashes, no_digests, no_hashes, none, none, None)
    rows = dataset.count()
    hashes, digests = np.empty(rows, np.uint64), np.empty(rows, np.int64)
    addresses = np.empty(rows, np.uint64)
    is_certain, is_gone = np.empty(rows, bool), np.empty(rows, bool)
    start, newest = 0, []
    for batch in dataset.batches(_COLUMNS, with_address=True):
        here = slice(start, start + batch.num_rows)
        hashes[here] = id_hashes(batch["item_id"])
        digests[here] = batch["digest"].to_numpy()
        addresses[here] = batch["_rowaddr"].to_numpy()
        is_certain[here] = batch["version"].is_valid().to_numpy(zero_copy_only=False)
        is_gone[here] = batch["gone_at"].is_valid().to_numpy(zero_copy_only=False)
        if batch.num_rows:
            newest.append(pc.max(batch["listed_at"]).as_py())
        start += batch.num_rows
        alive()
    order = np.argsort(hashes)
    return KnownItems(
        hashes[order], digests[order], addresses[order], is_certain[order], is_gone[order],
        max(newest, default=None),
    )  # fmt: skip
