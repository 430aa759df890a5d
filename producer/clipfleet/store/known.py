"""What a dataset knows of its items, in arrays: 25 bytes per row. For comparisons with a whole source."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.store.dataset import Alive, VectorDataset
from clipfleet.store.rows import id_hashes

if TYPE_CHECKING:
    import numpy as np

# A file may change again within one tick of its file system's clock, without a trace in size or time.
RACY = timedelta(seconds=2)
_COLUMNS = ("item_id", "digest", "version", "listed_at", "gone_at")
_NANOSECONDS = r"^\d+ (?P<ns>\d{1,18}|[1-8]\d{18})$"  # of the version of a local file: size and mtime


@dataclass(frozen=True)
class KnownItems:
    """The rows of a dataset at one version, in the order of the hashes of their ids."""

    hashes: np.ndarray  # uint64, sorted; see `id_hashes`
    digests: np.ndarray  # int64
    addresses: np.ndarray  # uint64, see `VectorDataset.take`
    is_certain: np.ndarray  # bool: an equal digest means that nothing has changed
    is_gone: np.ndarray = field(repr=False)  # bool: the source had it no more

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
    """Read what a dataset knows; None: there is no dataset yet.

    An item is certain if its version is known, and is older by two seconds than the listing that it was in:
    one without a version is asked each time, and a file that was written just then may have been written
    once more.
    """
    import numpy as np

    if dataset is None:
        none = np.empty(0, bool)
        return KnownItems(np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.uint64), none, none)
    rows = dataset.count()
    hashes, digests = np.empty(rows, np.uint64), np.empty(rows, np.int64)
    addresses = np.empty(rows, np.uint64)
    is_certain, is_gone = np.empty(rows, bool), np.empty(rows, bool)
    start = 0
    for batch in dataset.batches(_COLUMNS, with_address=True):
        here = slice(start, start + batch.num_rows)
        hashes[here] = id_hashes(batch["item_id"])
        digests[here] = batch["digest"].to_numpy()
        addresses[here] = batch["_rowaddr"].to_numpy()
        is_certain[here] = _is_certain(batch)
        is_gone[here] = batch["gone_at"].is_valid().to_numpy(zero_copy_only=False)
        start += batch.num_rows
        alive()
    order = np.argsort(hashes)
    return KnownItems(hashes[order], digests[order], addresses[order], is_certain[order], is_gone[order])


def _is_certain(batch: pa.RecordBatch) -> np.ndarray:
    """See `known_items`."""
    version = batch["version"]
    changed = pc.struct_field(pc.extract_regex(version, _NANOSECONDS), "ns").cast(pa.int64())
    latest = pc.subtract(
        batch["listed_at"].cast(pa.int64()), pa.scalar(int(RACY.total_seconds() * 1_000_000), pa.int64())
    )
    is_old = pc.fill_null(pc.less(pc.divide(changed, 1000), latest), True)  # an ETag, or another text
    found: np.ndarray = pc.and_(version.is_valid(), is_old).to_numpy(zero_copy_only=False)
    return found
