"""Finds the rows of a dataset that a night is about. Memory: 40 bytes per row of the night."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.parts import ItemStatus
from clipfleet.store.committing.night import Night, of_status
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.rows import wide_id_hashes

if TYPE_CHECKING:
    import numpy as np

Alive = Callable[[], object]


class IdSet:
    """Ids by 128 bits of their hashes, each with a place for one more number."""

    def __init__(self, hashes: Iterable[np.ndarray]) -> None:
        """`hashes` of `wide_id_hashes`."""
        import numpy as np

        found = [*hashes]
        every = np.concatenate(found) if found else np.empty((0, 2), np.uint64)
        self._order = np.lexsort((every[:, 1], every[:, 0]))
        every = every[self._order]
        self._low, self._high = every[:, 0].copy(), every[:, 1].copy()

    def __len__(self) -> int:
        return len(self._low)

    def places(self, hashes: np.ndarray) -> np.ndarray:
        """The place of each hash, by the order in which the ids were given; -1: not there."""
        import numpy as np

        if not len(self._low):
            return np.full(len(hashes), -1)
        low = hashes[:, 0].copy()
        found = np.searchsorted(self._low, low)
        found[found == len(self._low)] = 0
        # Equal low halves stand side by side; more than two never do.
        after = np.minimum(found + 1, len(self._low) - 1)
        is_after = (self._low[after] == low) & (self._high[after] == hashes[:, 1])
        found = np.where(is_after, after, found)
        is_there = (self._low[found] == low) & (self._high[found] == hashes[:, 1])
        return np.where(is_there, self._order[found], -1)


@dataclass(frozen=True)
class Matches:
    """Addresses of rows of the dataset; uint64, of which `NOWHERE` means none."""

    ok: np.ndarray  # of each ok row of the night, in their order; what is there is replaced
    is_late: np.ndarray  # bool, likewise: the row there is of a later listing, and stays
    same: (
        np.ndarray
    )  # of each row of the night that is `same`, in their order, unless it is of a later listing
    gone: np.ndarray  # rows whose items are gone now
    expired: np.ndarray  # rows whose items have been gone for long enough


NOWHERE = (1 << 64) - 1
_COLUMNS = ("item_id", "digest", "listed_at", "gone_at")


def match(dataset: VectorDataset, night: Night, alive: Alive = lambda: None) -> Matches:
    """Read the night's ids, then the dataset's rows without their vectors."""
    import numpy as np

    ok = IdSet(_hashes(night, ItemStatus.OK, alive))
    same = IdSet(_hashes(night, ItemStatus.SAME, alive))
    gone_batches = [*night.gone()]
    gone = IdSet(wide_id_hashes(batch["item_id"]) for batch in gone_batches)
    digests = np.concatenate(
        [batch["digest"].to_numpy() for batch in gone_batches] or [np.empty(0, np.int64)]
    )
    of_ok, of_same = (np.full(len(ids), NOWHERE, np.uint64) for ids in (ok, same))
    is_late = np.zeros(len(ok), bool)
    removed: list[np.ndarray] = []
    expired: list[np.ndarray] = []
    for batch in dataset.batches(_COLUMNS, with_address=True):
        hashes, addresses = wide_id_hashes(batch["item_id"]), batch["_rowaddr"].to_numpy()
        is_later = _mask(pc.greater(batch["listed_at"], pa.scalar(night.listed_at, batch["listed_at"].type)))
        places = ok.places(hashes)
        is_hit = places >= 0
        of_ok[places[is_hit]] = addresses[is_hit]
        is_late[places[is_hit]] = is_later[is_hit]
        places = same.places(hashes)
        is_hit = (places >= 0) & ~is_later
        of_same[places[is_hit]] = addresses[is_hit]
        places = gone.places(hashes)
        is_hit = (places >= 0) & ~is_later & ~_mask(batch["gone_at"].is_valid())
        is_hit[is_hit] = digests[places[is_hit]] == batch["digest"].to_numpy()[is_hit]
        removed.append(addresses[is_hit])
        is_old = _mask(pc.less(batch["gone_at"], pa.scalar(night.kept_since, batch["gone_at"].type)))
        is_back = (ok.places(hashes) >= 0) | (same.places(hashes) >= 0)
        expired.append(addresses[is_old & ~is_back])
        alive()
    none = np.empty(0, np.uint64)
    return Matches(
        of_ok, is_late, of_same, np.concatenate([*removed, none]), np.concatenate([*expired, none])
    )


def _hashes(night: Night, status: ItemStatus, alive: Alive) -> Iterable[np.ndarray]:
    for batch in night.rows():
        yield wide_id_hashes(of_status(batch, status)["item_id"])
        alive()


def _mask(values: pa.Array) -> np.ndarray:
    found: np.ndarray = pc.fill_null(values, False).to_numpy(zero_copy_only=False)
    return found
