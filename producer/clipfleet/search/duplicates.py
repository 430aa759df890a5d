"""Groups of images that are equal, or so alike that their vectors are close."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from clipfleet.labels.metrics import unit
from clipfleet.results.rows import RowReader
from clipfleet.search.close_pairs import Progress, connect_close
from clipfleet.search.components import Components
from clipfleet.search.spool import Spool, spooled
from clipfleet.store.rows import id_hashes

_HASH = "content_hash"
_COLUMNS = ("item_id", "uri", _HASH)
_ITEMS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Member:
    """An item of a group."""

    item_id: str
    uri: str
    content_hash: str | None
    cosine: float  # to the first item; may be less than the threshold: others connect the two then


@dataclass(frozen=True, slots=True)
class Group:
    """Items that are connected by pairs of equal or close ones, in the order of the rows."""

    are_equal: bool  # the files of all have the same bytes
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Duplicates:
    """The groups of an output or a store."""

    items: int  # with a vector
    count: int  # of groups
    surplus: int  # items besides the first one of each group
    groups: Iterator[Group]  # readable once; of equal files first, then the others; large ones first


@contextmanager
def duplicates(
    reader: RowReader, threshold: float, on_progress: Progress = lambda share: None
) -> Iterator[Duplicates]:
    """Find all groups of items that equal bytes or close vectors connect.

    Args:
        reader: of an output or a store.
        threshold: the least cosine of a pair that is close.
        on_progress: called with the share of the work that is done.

    Raises:
        UsageError: no row has a vector. Otherwise see `spooled`.
    """
    with spooled(reader, _COLUMNS) as spool:
        equal = _first_equal(spool)
        components = Components(len(spool))
        components.connect(np.arange(len(spool)), equal)
        firsts = np.flatnonzero(equal == np.arange(len(spool)))
        connect_close(spool.vectors, firsts, threshold, components, spool.scratch("projected"), on_progress)
        yield _grouped(spool, equal, components.roots(np.arange(len(spool))))


def _first_equal(spool: Spool) -> np.ndarray:
    """For each row the first one whose file has the same bytes, int64: itself if there is none before it."""
    rows = np.arange(len(spool))
    known, hashes = [rows[:0]], [np.empty(0, np.uint64)]
    for start, batch in spool.batches():
        is_known = batch[_HASH].is_valid()
        known.append(start + np.flatnonzero(is_known.to_numpy(zero_copy_only=False)))
        hashes.append(id_hashes(batch[_HASH].filter(is_known)))
    places = np.concatenate(known)
    _, first, same = np.unique(np.concatenate(hashes), return_index=True, return_inverse=True)
    rows[places] = places[first][same]
    return rows


def _grouped(spool: Spool, equal: np.ndarray, roots: np.ndarray) -> Duplicates:
    order = np.argsort(roots, kind="stable")
    _, starts, sizes = np.unique(roots[order], return_index=True, return_counts=True)
    starts, sizes = starts[sizes > 1], sizes[sizes > 1]
    rows = [order[start : start + size] for start, size in zip(starts, sizes, strict=True)]
    are_equal = np.array([bool((equal[some] == equal[some[0]]).all()) for some in rows], bool)
    sequence = np.lexsort((starts, -sizes, ~are_equal))
    groups = (Group(bool(are_equal[one]), tuple(_members(spool, rows[one]))) for one in sequence)
    return Duplicates(len(spool), len(rows), int(sizes.sum()) - len(rows), groups)


def _members(spool: Spool, rows: np.ndarray) -> Iterator[Member]:
    first = unit(spool.vectors[rows[:1]])[0]
    for start in range(0, len(rows), _ITEMS_AT_ONCE):
        some = rows[start : start + _ITEMS_AT_ONCE]
        cosines = np.minimum(unit(spool.vectors[some]) @ first, 1)  # above it by rounding
        for row, cosine in zip(spool.take(some).to_pylist(), cosines.tolist(), strict=True):
            yield Member(row["item_id"], row["uri"], row[_HASH], cosine)
