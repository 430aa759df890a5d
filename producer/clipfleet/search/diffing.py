"""What differs between two outputs or stores, or two versions of one: items, labels, vectors, neighbours.

Items are matched by their ids. Vectors of different models are not comparable, their neighbours are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.labels.metrics import unit
from clipfleet.results.rows import RowReader
from clipfleet.search.nearest import Nearest
from clipfleet.search.queries import fingerprints_of
from clipfleet.search.spool import Spool, spooled
from clipfleet.store.rows import id_hashes

NEIGHBOURS = 10
_ROWS_AT_ONCE = 8192
_ID, _HASH = "item_id", "content_hash"
_95_PERCENT = 1.96


@dataclass(frozen=True, slots=True)
class Moved:
    """An item whose vector, or whose neighbours, differ."""

    item_id: str
    agreement: float  # cosine of its two vectors; of different models the share of its neighbours


@dataclass(frozen=True, slots=True)
class LabelChanges:
    """How a column of labels differs, over the items that both have."""

    changed: int
    pairs: tuple[
        tuple[str | None, str | None, int], ...
    ]  # label here, label there, items: frequent ones first


@dataclass(frozen=True, slots=True)
class Neighbours:
    """How many of the nearest neighbours of an item are the same, for a sample of the items that both have."""

    queries: int
    agreement: float  # mean share of the nearest `NEIGHBOURS`
    interval: tuple[float, float]  # 95 %


@dataclass(frozen=True, slots=True)
class Difference:
    """See the module."""

    common: int  # items, by their ids; of several with one id the first counts
    only_first: int
    only_second: int
    only_first_ids: tuple[str, ...]  # some of them
    only_second_ids: tuple[str, ...]
    changed_images: int  # of the common ones: files with other bytes
    labels: Mapping[str, LabelChanges]  # by column
    is_comparable: bool  # whether the vectors are: of one model
    neighbours: Neighbours | None  # None: one of both has no vectors, or there is no neighbour
    moved: tuple[Moved, ...]  # those that moved most, first; of different models only of the sample


def difference(first: RowReader, second: RowReader, *, top: int, sample: int) -> Difference:
    """Compare all rows that are ok, in bounded memory.

    Args:
        first: of an output or a store.
        second: of another one, or of another version.
        top: items, and pairs of labels, that are named.
        sample: items whose neighbours are compared.

    Raises:
        UsageError: see `spooled`.
    """
    with_vectors = _keeps_vectors(first) and _keeps_vectors(second)
    labels = _label_columns(first, second)
    columns = [_ID, _HASH, *labels]
    with (
        spooled(first, columns, with_vectors=with_vectors) as one,
        spooled(second, columns, with_vectors=with_vectors) as other,
    ):
        pairs, alone_here, alone_there = _matched(one, other)
        is_comparable = with_vectors and _is_one_model(first, second, pairs)
        found = _Compared(labels, top)
        for here, there in pairs.blocks():
            found.add(one.take(here), other.take(there))
            if is_comparable:
                found.add_vectors(one, here, other, there)
        neighbours, moved = _neighbours(pairs, top, sample) if with_vectors else (None, ())
        return Difference(
            common=len(pairs), only_first=len(alone_here), only_second=len(alone_there),
            only_first_ids=_ids(one, alone_here[:top]), only_second_ids=_ids(other, alone_there[:top]),
            changed_images=found.changed_images, labels=found.label_changes(), is_comparable=is_comparable,
            neighbours=neighbours, moved=tuple(found.moved) if is_comparable else moved,
        )  # fmt: skip


def _keeps_vectors(reader: RowReader) -> bool:
    job = reader.job()
    return job is None or job.keeps_embeddings


def _label_columns(first: RowReader, second: RowReader) -> list[str]:
    """The columns of the best label that both have, of any label set."""
    here, there = first.read().schema, second.read().schema
    both = [name for name in here.names if name in there.names]
    return [
        name
        for name in both
        if (name == "label" or name.startswith("label_"))
        and pa.types.is_string(here.field(name).type)
        and pa.types.is_string(there.field(name).type)
    ]


@dataclass(frozen=True, slots=True)
class _Pairs:
    """The rows of the items that both have, in the order of the first."""

    first: Spool
    here: np.ndarray  # int64, positions
    second: Spool
    there: np.ndarray

    def __len__(self) -> int:
        return len(self.here)

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The positions of a few thousand pairs at a time."""
        for start in range(0, len(self), _ROWS_AT_ONCE):
            yield self.here[start : start + _ROWS_AT_ONCE], self.there[start : start + _ROWS_AT_ONCE]


def _matched(first: Spool, second: Spool) -> tuple[_Pairs, np.ndarray, np.ndarray]:
    """The pairs, and the rows that only one of both has.

    Ids are compared by 64 bits of their hashes: two of 10 million and 10 million clash once in 190,000 times.
    """
    (hashes, rows), (others, other_rows) = _by_id(first), _by_id(second)
    _, here, there = np.intersect1d(hashes, others, assume_unique=True, return_indices=True)
    order = np.argsort(rows[here])
    pairs = _Pairs(first, rows[here][order], second, other_rows[there][order])
    return pairs, np.sort(np.delete(rows, here)), np.sort(np.delete(other_rows, there))


def _by_id(spool: Spool) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of the ids, each once, and the first row of each."""
    hashes, rows = np.unique(
        np.concatenate([id_hashes(batch[_ID]) for _, batch in spool.batches()]), return_index=True
    )
    return hashes, rows


def _ids(spool: Spool, rows: np.ndarray) -> tuple[str, ...]:
    return tuple(spool.take(rows)[_ID].to_pylist()) if len(rows) else ()


def _is_one_model(first: RowReader, second: RowReader, pairs: _Pairs) -> bool:
    """Whether vectors are comparable: those of one model in two precisions are, though fingerprints differ."""
    if pairs.first.vectors.shape[1] != pairs.second.vectors.shape[1]:
        return False
    if {*fingerprints_of(first)} & {*fingerprints_of(second)}:
        return True
    job, other = first.job(), second.job()
    return job is not None and other is not None and job.model == other.model


class _Compared:
    """What the pairs that were looked at have shown."""

    def __init__(self, labels: Sequence[str], top: int) -> None:
        self._labels = labels
        self._top = top
        self._changes: dict[str, Counter[tuple[str | None, str | None]]] = {one: Counter() for one in labels}
        self._seen: set[str] = set()  # columns with a label
        self.changed_images = 0
        self.moved: list[Moved] = []  # least similar first

    def add(self, here: pa.Table, there: pa.Table) -> None:
        """Compare the columns of some pairs."""
        changed = pc.not_equal(here[_HASH], there[_HASH])
        self.changed_images += pc.sum(changed).as_py() or 0
        for name in self._labels:
            pairs = Counter(zip(here[name].to_pylist(), there[name].to_pylist(), strict=True))
            if any(one is not None for pair in pairs for one in pair):
                self._seen.add(name)
            self._changes[name].update({pair: count for pair, count in pairs.items() if pair[0] != pair[1]})

    def add_vectors(self, first: Spool, here: np.ndarray, second: Spool, there: np.ndarray) -> None:
        """Compare the vectors of some pairs."""
        cosines = np.einsum("ij,ij->i", unit(first.vectors[here]), unit(second.vectors[there]))
        cosines = np.where(np.isfinite(cosines), cosines, -1)
        lowest = np.argsort(cosines, kind="stable")[: self._top]
        named = zip(_ids(first, here[lowest]), cosines[lowest].tolist(), strict=True)
        self.moved += [Moved(item_id, cosine) for item_id, cosine in named]
        self.moved = sorted(self.moved, key=lambda one: one.agreement)[: self._top]

    def label_changes(self) -> dict[str, LabelChanges]:
        """Of each column in which an item has a label."""
        return {
            name: LabelChanges(
                counts.total(), tuple((*pair, count) for pair, count in counts.most_common(self._top))
            )
            for name, counts in self._changes.items()
            if name in self._seen
        }


def _neighbours(pairs: _Pairs, top: int, sample: int) -> tuple[Neighbours | None, tuple[Moved, ...]]:
    """Compare the nearest neighbours of some items among those that both have."""
    count = min(NEIGHBOURS, len(pairs) - 1)
    if count < 1:
        return None, ()
    chosen = np.sort(np.random.default_rng(0).permutation(len(pairs))[:sample])
    here = Nearest(pairs.first.vectors[pairs.here[chosen]], count + 1)
    there = Nearest(pairs.second.vectors[pairs.there[chosen]], count + 1)
    start = 0
    for some, others in pairs.blocks():
        here.add(start, pairs.first.vectors[some])
        there.add(start, pairs.second.vectors[others])
        start += len(some)
    shares = np.array(
        [
            len(_others(one, own, count) & _others(other, own, count)) / count
            for own, one, other in zip(chosen, here.positions(), there.positions(), strict=True)
        ]
    )
    mean, half = float(shares.mean()), _95_PERCENT * float(shares.std()) / len(shares) ** 0.5
    lowest = np.argsort(shares, kind="stable")[:top]
    ids = _ids(pairs.first, pairs.here[chosen[lowest]])
    moved = tuple(Moved(item_id, share) for item_id, share in zip(ids, shares[lowest].tolist(), strict=True))
    return Neighbours(len(chosen), mean, (max(0.0, mean - half), min(1.0, mean + half))), moved


def _others(found: np.ndarray, own: int, count: int) -> set[int]:
    """The neighbours of an item, which may be its own nearest one."""
    return {*[one for one in found.tolist() if one != own][:count]}
