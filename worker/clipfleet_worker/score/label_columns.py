"""From the numbers of a label set to its columns of a part, without a Python object per item."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from clipfleet.contract.parts import ACCEPTED_TYPE
from clipfleet_worker.score.accepting import Acceptance
from clipfleet_worker.score.ranking import Ranking

# Of a label set: `LABEL_COLUMNS`, then `accepted`; of a head: `JobHead.columns`. See `part_schema`.
Columns = Sequence[pa.Array]


def label_columns_of(labels: Sequence[str], found: Ranking | Acceptance) -> Columns:
    """The columns of some items, one row each.

    Args:
        labels: all labels of the set.
        found: the best of them for each item.
    """
    names = pa.array(labels, pa.string())
    items, best = found.label_indices.shape
    per_item = np.arange(items + 1, dtype=np.int32) * best
    chosen, chosen_scores = found.label_indices[:, 0], found.scores[:, 0]
    accepted: pa.Array = pa.nulls(items, ACCEPTED_TYPE)
    missing = None
    if isinstance(found, Acceptance):
        ends = np.concatenate([[0], np.cumsum(found.accepted_counts)]).astype(np.int32)
        accepted = lists(ends, names.take(pa.array(found.accepted)))
        missing = found.accepted_counts == 0
        chosen = np.zeros(items, np.int64)
        chosen[~missing] = found.accepted[ends[:-1][~missing]]
        chosen_scores = found.best_scores
    return (
        names.take(pa.array(chosen, mask=missing)),
        pa.array(chosen_scores),
        lists(per_item, names.take(pa.array(found.label_indices.reshape(-1)))),
        lists(per_item, pa.array(found.scores.reshape(-1))),
        accepted,
    )


def lists(ends: np.ndarray, values: pa.Array) -> pa.Array:
    """A list for each item: `ends`, int32 (items + 1,), starts with 0."""
    return pa.ListArray.from_arrays(pa.array(ends), values)


def placed(parts: Sequence[tuple[np.ndarray, Columns]], items: int) -> Columns:
    """The columns of all items of a chunk, null where no part has the item; none if there are no parts.

    Args:
        parts: positions in the chunk, and the columns of these items; no position appears twice.
        items: of the chunk.
    """
    if not parts:
        return ()
    found = tuple(
        pa.concat_arrays([*of_parts]) for of_parts in zip(*(columns for _, columns in parts), strict=True)
    )
    positions = np.concatenate([positions for positions, _ in parts])
    if np.array_equal(positions, np.arange(items)):  # all are there, in order
        return found
    rows = np.full(items, -1)
    rows[positions] = np.arange(len(positions))
    places = pa.array(rows, mask=rows < 0)
    return tuple(column.take(places) for column in found)
