"""Samples that are found in one pass: the entries of each group with the smallest keys. Bounded memory."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

_SEED = 0x636C6970  # of the uniform keys: any fixed number
_GAMMA, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def uniform_keys(item_index: pa.Array) -> pa.Array:
    """Uniform numbers in [0, 1) by a hash of item_index, so that the same items are drawn each time.

    SplitMix64: G. L. Steele, D. Lea and C. H. Flood, "Fast splittable pseudorandom number generators",
    OOPSLA 2014.
    """

    def constant(value: int) -> pa.Scalar:
        return pa.scalar(value, pa.uint64())

    def shifted(values: pa.Array, bits: int) -> pa.Array:
        return pc.bit_wise_xor(values, pc.shift_right(values, constant(bits)))

    hashed = pc.add(pc.multiply(item_index.cast(pa.uint64()), constant(_GAMMA)), constant(_SEED))
    hashed = pc.multiply(shifted(hashed, 30), constant(_FIRST))
    hashed = shifted(pc.multiply(shifted(hashed, 27), constant(_SECOND)), 31)
    return pc.divide(pc.shift_right(hashed, constant(11)).cast(pa.float64()), float(1 << 53))


class Smallest:
    """Up to k entries of each group, those with the smallest keys; of equal keys the first `item_index`."""

    def __init__(self, k: int) -> None:
        self._k = k
        # By group: the negative keys, so that the largest key is on top.
        self._heaps: list[list[tuple[float, int, float]]] = []
        self._limits: list[float] = []

    def add(self, groups: pa.Array, keys: pa.Array, indexes: pa.Array, values: pa.Array) -> list[int]:
        """Add entries; return the `item_index` of those that are among the smallest so far.

        Args:
            groups: numbers from 0 on, (n,).
            keys: to compare by, (n,) float64.
            indexes: `item_index`, (n,).
            values: a number that is kept with the entry, (n,).
        """
        if not len(groups) or not self._k:
            return []
        for _ in range(pc.max(groups).as_py() + 1 - len(self._heaps)):
            self._heaps.append([])
            self._limits.append(float("inf"))
        limits = pa.array(self._limits, pa.float64()).take(groups)
        may = pc.less_equal(keys, limits)
        taken = []
        for group, key, index, value in zip(
            *(column.filter(may).to_pylist() for column in (groups, keys, indexes, values)), strict=True
        ):
            if self._push(group, (-key, -index, value)):
                taken.append(index)
        return taken

    def _push(self, group: int, entry: tuple[float, int, float]) -> bool:
        heap = self._heaps[group]
        if len(heap) < self._k:
            heapq.heappush(heap, entry)
        elif entry > heap[0]:
            heapq.heapreplace(heap, entry)
        else:
            return False
        if len(heap) == self._k:
            self._limits[group] = -heap[0][0]
        return True

    def of(self, group: int) -> list[tuple[int, float]]:
        """`item_index` and value of a group's entries, by key."""
        if group >= len(self._heaps):
            return []
        return [(-index, value) for _, index, value in sorted(self._heaps[group], reverse=True)]

    def indexes(self) -> Iterator[int]:
        """The `item_index` of all entries."""
        return (-index for heap in self._heaps for _, index, _ in heap)


class KeptRows:
    """Whole rows of the items that samples still hold; those that they have dropped are removed in turn."""

    def __init__(self, samples: Sequence[Smallest], always: set[int]) -> None:
        self._samples, self._always = samples, always
        self._batches: list[pa.RecordBatch] = []
        self._count, self._next = 0, _LEAST_ROWS

    def add(self, batch: pa.RecordBatch, taken: set[int]) -> None:
        """Keep the rows of a batch that a sample has taken, or that are always wanted."""
        wanted = taken | self._always if len(self._always) < _FEW else taken | self._there(batch)
        kept = batch.filter(pc.is_in(batch["item_index"], value_set=pa.array(wanted, pa.int64())))
        if not kept.num_rows:
            return
        # A filtered batch may still hold the buffers of the whole one.
        self._batches.append(kept)
        self._count += kept.num_rows
        if self._count > self._next:
            self._compact()

    def _there(self, batch: pa.RecordBatch) -> set[int]:
        return self._always.intersection(batch["item_index"].to_pylist())

    def _compact(self) -> None:
        alive = pa.array(self._always.union(*(one.indexes() for one in self._samples)), pa.int64())
        table = pa.Table.from_batches(self._batches)
        table = table.filter(pc.is_in(table["item_index"], value_set=alive)).combine_chunks()
        self._batches = table.to_batches()
        self._count = table.num_rows
        self._next = max(_LEAST_ROWS, 2 * self._count)

    def batches(self) -> list[pa.RecordBatch]:
        """All kept rows, in the order of the source."""
        if self._batches:
            self._compact()
        return self._batches


_LEAST_ROWS = 4096
_FEW = 64
