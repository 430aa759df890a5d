"""What differs between two outputs or stores, or two versions of one: items, labels, vectors, neighbours.

Items are matched by their ids. Vectors of different models are not comparable, their neighbours are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from clipfleet.contract.columns import LABEL_COLUMNS, label_columns
from clipfleet.labels.metrics import unit
from clipfleet.results.rows import RowReader
from clipfleet.search.nearest import Nearest
from clipfleet.search.queries import fingerprints_of
from clipfleet.search.spool import Spool, spooled
from clipfleet.store.rows import id_hashes

NEIGHBOURS = 10  # of an item, that are compared
_ROWS_AT_ONCE = 8192
_ID, _HASH, _VECTORS = "item_id", "content_hash", "embedding"
_NORMAL_95_PERCENT = 1.96

Progress = Callable[[float], object]
LabelPair = tuple[str | None, str | None]


@dataclass(frozen=True, slots=True)
class Moved:
    """An item whose vector, or whose neighbours, differ."""

    item_id: str
    agreement: float  # cosine of its two vectors; of different models the share of its neighbours


@dataclass(frozen=True, slots=True)
class LabelChanges:
    """How a column of labels differs, over the items that both have."""

    changed: int
    pairs: tuple[tuple[LabelPair, int], ...]  # labels here and there, items; frequent ones first


@dataclass(frozen=True, slots=True)
class Neighbours:
    """How many of the nearest neighbours are the same, for a sample of the items that both have."""

    sampled: int
    count: int  # neighbours of each: `NEIGHBOURS`, or all where there are fewer
    agreement: float  # mean share of them
    interval: tuple[float, float]  # of the mean, 95 %


@dataclass(frozen=True, slots=True)
class Vectors:
    """How vectors of one model differ, over the items that both have."""

    changed: int
    mean_cosine: float  # of the changed ones; 1 if there are none


@dataclass(frozen=True, slots=True)
class Difference:
    """See the module. Of several items with one id in an output the first counts."""

    fingerprints: tuple[tuple[str, ...], tuple[str, ...]]  # of the models of both
    common: int  # items
    only_first: int
    only_second: int
    only_first_ids: tuple[str, ...]  # some of them
    only_second_ids: tuple[str, ...]
    changed_files: int  # of the common items: those with other bytes
    labels: Mapping[str, LabelChanges]  # by column
    vectors: Vectors | None  # None: they are of different models, or one of both has none
    neighbours: Neighbours | None  # None: one of both has no vectors, or no item has a neighbour
    moved: tuple[Moved, ...]  # those that moved most, first; of different models only of the sample


def difference(
    first: RowReader,
    second: RowReader,
    *,
    top: int,
    sample: int,
    on_progress: Progress = lambda share: None,
) -> Difference:
    """Compare all rows that are ok, in bounded memory.

    Args:
        first: of an output or a store.
        second: of another one, or of another version.
        top: items, and pairs of labels, that are named.
        sample: items whose neighbours are compared.
        on_progress: called with the share of the common items that have been compared.

    Raises:
        UsageError: see `spooled`.
    """
    labels = _label_columns(first, second)
    columns = [_ID, _HASH, *labels]
    has_vectors = _keeps_vectors(first) and _keeps_vectors(second)
    made_by = fingerprints_of(first), fingerprints_of(second)
    is_one_model = has_vectors and bool({*made_by[0]} & {*made_by[1]})
    with (
        spooled(first, columns, with_vectors=has_vectors) as here,
        spooled(second, columns, with_vectors=has_vectors) as there,
    ):
        pairs, alone_here, alone_there = _matched(here, there)
        found = _Compared(labels, top)
        near = _Near(pairs, sample) if has_vectors and len(pairs) > 1 else None
        for start, some in pairs.blocks():
            found.add(some)
            if is_one_model:
                found.add_vectors(some)
            if near is not None:
                near.add(start, some)
            on_progress((start + len(some)) / len(pairs))
        moved = found.moved if is_one_model else [] if near is None else near.moved(top)
        return Difference(
            fingerprints=made_by, common=len(pairs), only_first=len(alone_here),
            only_second=len(alone_there), only_first_ids=_ids(here, alone_here[:top]),
            only_second_ids=_ids(there, alone_there[:top]), changed_files=found.changed_files,
            labels=found.label_changes(), vectors=found.vectors() if is_one_model else None,
            neighbours=None if near is None else near.agreement(), moved=tuple(moved),
        )  # fmt: skip


def _keeps_vectors(reader: RowReader) -> bool:
    """Whether rows have vectors: the column may be there without any."""
    job = reader.job()
    return _VECTORS in reader.read().schema.names and (job is None or job.keeps_embeddings)


def _label_columns(first: RowReader, second: RowReader) -> list[str]:
    """The columns of best labels that both have: of label sets, and of heads."""
    here, there = _own_label_columns(first), _own_label_columns(second)
    return [name for name in here if name in there]


def _own_label_columns(reader: RowReader) -> list[str]:
    job, there = reader.job(), reader.read().schema.names
    names = [LABEL_COLUMNS[0]]
    if job is not None:
        names += [label_columns(one.name)[0] for one in job.named_label_sets]
        names += [one.columns[0] for one in job.heads]
    return [name for name in names if name in there]


@dataclass(frozen=True, slots=True)
class _Pairs:
    """The rows of items that both have."""

    first: Spool
    here: np.ndarray  # int64, positions, ascending
    second: Spool
    there: np.ndarray

    def __len__(self) -> int:
        return len(self.here)

    def take(self, places: np.ndarray | slice) -> _Pairs:
        """Some of them."""
        return _Pairs(self.first, self.here[places], self.second, self.there[places])

    def blocks(self) -> Iterator[tuple[int, _Pairs]]:
        """A few thousand at a time, with the place of the first one."""
        for start in range(0, len(self), _ROWS_AT_ONCE):
            yield start, self.take(slice(start, start + _ROWS_AT_ONCE))

    def vectors(self) -> tuple[np.ndarray, np.ndarray]:
        return self.first.vectors[self.here], self.second.vectors[self.there]


def _matched(first: Spool, second: Spool) -> tuple[_Pairs, np.ndarray, np.ndarray]:
    """The pairs, and the rows of items that only one of both has.

    Ids are compared by hashes of 64 bits: among 10 million there and 10 million here, two different ones are
    taken for one item in one of 190,000 comparisons.
    """
    (hashes, rows), (others, other_rows) = _by_id(first), _by_id(second)
    _, here, there = np.intersect1d(hashes, others, assume_unique=True, return_indices=True)
    order = np.argsort(rows[here])
    pairs = _Pairs(first, rows[here][order], second, other_rows[there][order])
    return pairs, np.sort(np.delete(rows, here)), np.sort(np.delete(other_rows, there))


def _by_id(spool: Spool) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of the ids, each once, and the first row of each."""
    hashes = np.concatenate([id_hashes(batch[_ID]) for _, batch in spool.batches()])
    found, rows = np.unique(hashes, return_index=True)
    return found, rows


def _ids(spool: Spool, rows: np.ndarray) -> tuple[str, ...]:
    return tuple(spool.take(rows)[_ID].to_pylist()) if len(rows) else ()


class _Compared:
    """What the pairs that were looked at have shown."""

    def __init__(self, labels: Sequence[str], top: int) -> None:
        self._labels = labels
        self._top = top
        self._changes: dict[str, Counter[LabelPair]] = {one: Counter() for one in labels}
        self._labelled: dict[str, set[int]] = {one: set() for one in labels}  # sides that have a label
        self._changed_vectors, self._sum_of_cosines = 0, 0.0
        self.changed_files = 0
        self.moved: list[Moved] = []  # least similar first

    def add(self, pairs: _Pairs) -> None:
        """Compare columns."""
        sides = pairs.first.take(pairs.here), pairs.second.take(pairs.there)
        self.changed_files += pc.sum(pc.not_equal(sides[0][_HASH], sides[1][_HASH])).as_py() or 0
        for name in self._labels:
            here, there = (side[name] for side in sides)
            self._labelled[name].update(
                number for number, side in enumerate((here, there)) if side.null_count < len(side)
            )
            counts = Counter(zip(here.to_pylist(), there.to_pylist(), strict=True))
            self._changes[name].update({pair: count for pair, count in counts.items() if pair[0] != pair[1]})

    def add_vectors(self, pairs: _Pairs) -> None:
        """Compare vectors of one model."""
        here, there = pairs.vectors()
        differing = np.flatnonzero((here != there).any(axis=1))
        if not len(differing):
            return
        cosines = np.einsum("ij,ij->i", unit(here[differing]), unit(there[differing]))
        cosines = np.where(np.isfinite(cosines), np.minimum(cosines, 1), -1)  # above 1 by rounding
        self._changed_vectors += len(differing)
        self._sum_of_cosines += float(cosines.sum())
        lowest = np.argsort(cosines, kind="stable")[: self._top]
        ids = _ids(pairs.first, pairs.here[differing[lowest]])
        self.moved += map(Moved, ids, cosines[lowest].tolist())
        self.moved = sorted(self.moved, key=lambda one: one.agreement)[: self._top]

    def label_changes(self) -> dict[str, LabelChanges]:
        """Of each column in which both have labels."""
        return {
            name: LabelChanges(counts.total(), tuple(counts.most_common(self._top)))
            for name, counts in self._changes.items()
            if len(self._labelled[name]) == 2
        }

    def vectors(self) -> Vectors:
        changed = self._changed_vectors
        return Vectors(changed, self._sum_of_cosines / changed if changed else 1.0)


class _Near:
    """The nearest neighbours of a sample of the pairs, here and there, among all pairs."""

    def __init__(self, pairs: _Pairs, sample: int) -> None:
        self._count = min(NEIGHBOURS, len(pairs) - 1)
        self._chosen = np.sort(np.random.default_rng(0).permutation(len(pairs))[:sample])
        self._sampled = pairs.take(self._chosen)
        # Each item is among its own nearest ones, unless that many others equal it.
        self._nearest = [Nearest(vectors, self._count + 1) for vectors in self._sampled.vectors()]

    def add(self, start: int, pairs: _Pairs) -> None:
        for nearest, vectors in zip(self._nearest, pairs.vectors(), strict=True):
            nearest.add(start, vectors)

    def agreement(self) -> Neighbours:
        shares = self._shares()
        mean = float(shares.mean())
        half = _NORMAL_95_PERCENT * float(shares.std()) / len(shares) ** 0.5
        return Neighbours(len(shares), self._count, mean, (max(0.0, mean - half), min(1.0, mean + half)))

    def moved(self, top: int) -> list[Moved]:
        shares = self._shares()
        lowest = np.argsort(shares, kind="stable")[:top]
        lowest = lowest[shares[lowest] < 1]
        ids = _ids(self._sampled.first, self._sampled.here[lowest])
        return [*map(Moved, ids, shares[lowest].tolist())]

    def _shares(self) -> np.ndarray:
        """For each sampled pair the share of its neighbours that are the same, float64."""
        positions = [nearest.positions() for nearest in self._nearest]
        return np.array(
            [
                len({*self._neighbours(own, here)} & {*self._neighbours(own, there)}) / self._count
                for own, here, there in zip(self._chosen, *positions, strict=True)
            ]
        )

    def _neighbours(self, own: int, found: np.ndarray) -> list[int]:
        return [one for one in found.tolist() if one not in (own, -1)][: self._count]
