"""Finds the rows of a dataset that a night is about. Memory: 40 bytes per row of the night."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.parts import ItemStatus
from clipfleet.contract.stores import IS_COPIED
from clipfleet.store.committing.night import Night, of_status
from clipfleet.store.dataset import Alive, VectorDataset
from clipfleet.store.rows import TIME_TYPE, wide_id_hashes

if TYPE_CHECKING:
    import numpy as np


class IdSet:
    """Ids, by 128 bits of their hashes, and the order in which they were given."""

    def __init__(self, hashes: Sequence[np.ndarray]) -> None:
        """`hashes` of `wide_id_hashes`, in pieces."""
        import numpy as np

        every = np.concatenate([*hashes, np.empty((0, 2), np.uint64)])
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
    """What a night has, and the rows of the dataset with the same ids: addresses, uint64, or `NOWHERE`."""

    ok: np.ndarray  # of the row with the id of each ok row of the night, in the order of the night
    is_late: np.ndarray  # bool, likewise: that row is of a later listing, and stays as it is
    is_copied: np.ndarray  # bool, likewise
    same: np.ndarray  # of the row of each item that is `same`, in that order; none of a later listing
    failed: int  # rows of the night
    gone: np.ndarray  # rows whose items are gone now
    expired: np.ndarray  # rows whose items have been gone for long enough


NOWHERE = (1 << 64) - 1
_COLUMNS = ("item_id", "digest", "listed_at", "gone_at")


def match(dataset: VectorDataset, night: Night, alive: Alive = lambda: None) -> Matches:
    """Read the night's rows once, then the dataset's without their vectors."""
    import numpy as np

    ids = _ids_of(night, alive)
    ok, same, gone = IdSet(ids.ok), IdSet(ids.same), IdSet(ids.gone)
    digests = np.concatenate([*ids.gone_digests, np.empty(0, np.int64)])
    of_ok, of_same = (np.full(len(one), NOWHERE, np.uint64) for one in (ok, same))
    is_late = np.zeros(len(ok), bool)
    removed, expired = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
    for batch in dataset.batches(_COLUMNS, with_address=True):
        hashes, addresses = wide_id_hashes(batch["item_id"]), batch["_rowaddr"].to_numpy()
        is_later = _mask(pc.greater(batch["listed_at"], pa.scalar(night.listed_at, TIME_TYPE)))
        at_ok, at_same, at_gone = (one.places(hashes) for one in (ok, same, gone))
        is_hit = at_ok >= 0
        of_ok[at_ok[is_hit]] = addresses[is_hit]
        is_late[at_ok[is_hit]] = is_later[is_hit]
        is_hit = (at_same >= 0) & ~is_later
        of_same[at_same[is_hit]] = addresses[is_hit]
        is_hit = (at_gone >= 0) & ~is_later & ~_mask(batch["gone_at"].is_valid())
        is_hit[is_hit] = digests[at_gone[is_hit]] == batch["digest"].to_numpy()[is_hit]
        removed.append(addresses[is_hit])
        is_old = _mask(pc.less(batch["gone_at"], pa.scalar(night.kept_since, TIME_TYPE)))
        expired.append(addresses[is_old & (at_ok < 0) & (at_same < 0)])
        alive()
    is_copied = np.concatenate([*ids.is_copied, np.empty(0, bool)])
    return Matches(
        of_ok, is_late, is_copied, of_same, ids.failed, np.concatenate(removed), np.concatenate(expired)
    )


@dataclass
class _Ids:
    """The ids of a night by what became of them, as `wide_id_hashes`, in pieces."""

    ok: list[np.ndarray] = field(default_factory=list)
    is_copied: list[np.ndarray] = field(default_factory=list)  # bool, of each of `ok`
    same: list[np.ndarray] = field(default_factory=list)
    gone: list[np.ndarray] = field(default_factory=list)
    gone_digests: list[np.ndarray] = field(default_factory=list)
    failed: int = 0


def _ids_of(night: Night, alive: Alive) -> _Ids:
    found = _Ids()
    for batch in night.rows():
        ok, same = (of_status(batch, one) for one in (ItemStatus.OK, ItemStatus.SAME))
        found.ok.append(wide_id_hashes(ok["item_id"]))
        found.is_copied.append(_mask(ok[IS_COPIED]))
        found.same.append(wide_id_hashes(same["item_id"]))
        found.failed += batch.num_rows - ok.num_rows - same.num_rows
        alive()
    for batch in night.gone():
        found.gone.append(wide_id_hashes(batch["item_id"]))
        found.gone_digests.append(batch["digest"].to_numpy())
    return found


def _mask(values: pa.Array) -> np.ndarray:
    found: np.ndarray = pc.fill_null(values, False).to_numpy(zero_copy_only=False)
    return found
