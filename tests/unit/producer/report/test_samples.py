"""Samples of one pass, and the rows that are kept for them."""

from __future__ import annotations

import random

import pyarrow as pa

from clipfleet.report.samples import KeptRows, Smallest, uniform_keys


def numbers(*values: float) -> pa.Array:
    return pa.array(values, pa.float64())


def test_each_group_keeps_its_smallest_keys_whatever_the_batches_are() -> None:
    chance = random.Random(1)
    entries = [(chance.randrange(3), chance.random(), index) for index in range(500)]
    expected = {
        group: [index for _, index in sorted((key, index) for own, key, index in entries if own == group)[:7]]
        for group in range(3)
    }
    for size in (1, 64, 500):
        found = Smallest(7)
        for start in range(0, 500, size):
            groups, keys, indexes = zip(*entries[start : start + size], strict=True)
            found.add(pa.array(groups, pa.int32()), numbers(*keys), pa.array(indexes), numbers(*keys))

        assert {group: [index for index, _ in found.of(group)] for group in range(3)} == expected


def test_of_equal_keys_the_first_items_are_kept() -> None:
    found = Smallest(2)
    for index in (5, 3, 4, 1):
        found.add(pa.array([0], pa.int32()), numbers(0.5), pa.array([index]), numbers(0.5))

    assert [index for index, _ in found.of(0)] == [1, 3]
    assert found.of(9) == []


def test_uniform_keys_are_uniform_and_those_of_the_item() -> None:
    keys = uniform_keys(pa.array(range(10_000), pa.int64())).to_pylist()

    assert all(0 <= key < 1 for key in keys)
    assert abs(sum(keys) / len(keys) - 0.5) < 0.02
    assert abs(sum(key < 0.1 for key in keys) / len(keys) - 0.1) < 0.02
    assert uniform_keys(pa.array([77], pa.int64())).to_pylist() == [keys[77]]


def test_kept_rows_hold_no_more_than_the_samples() -> None:
    sample = Smallest(10)
    kept = KeptRows([sample], {3, 19_999})
    for start in range(0, 20_000, 1000):
        batch = pa.record_batch({"item_index": pa.array(range(start, start + 1000), pa.int64())})
        taken = sample.add(
            pa.array([0] * 1000, pa.int32()), uniform_keys(batch["item_index"]), batch["item_index"],
            pa.nulls(1000, pa.float64()),
        )  # fmt: skip
        kept.add(batch, {*taken})

    indexes = [index for batch in kept.batches() for index in batch["item_index"].to_pylist()]
    assert indexes == sorted({*sample.indexes(), 3, 19_999})
