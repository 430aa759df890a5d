"""Chunks of a job that names no size: small for a small source, of 512 items where its size is not known."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest

from clipfleet.contract.jobs import DEFAULT_CHUNK_SIZE
from clipfleet.submit.small_jobs import chunk_size_of, look_ahead
from tests.support.doubles import Clock


@pytest.mark.parametrize(
    ("items", "size"),
    [(1, 32), (32, 32), (33, 16), (300, 32), (1000, 112), (4095, 496), (4096, 512), (10_000_000, 512)],
)
def test_a_small_job_has_small_chunks(items: int, size: int) -> None:
    assert chunk_size_of(items) == size


def batch(rows: int) -> pa.RecordBatch:
    return pa.record_batch({"item_index": pa.array(range(rows), pa.int64())})


def rows_of(batches: Iterator[pa.RecordBatch]) -> list[int]:
    return [one.num_rows for one in batches]


@pytest.mark.parametrize(
    ("sizes", "size"),
    [
        ([512, 88], chunk_size_of(600)),
        ([512, 1024, 2048, 4608, 7], DEFAULT_CHUNK_SIZE),  # large
        ([3, 0, 2], DEFAULT_CHUNK_SIZE),  # idle
        ([], chunk_size_of(0)),
    ],
)
def test_all_batches_come_after_the_look(sizes: list[int], size: int) -> None:
    found, batches = look_ahead(iter([batch(rows) for rows in sizes]))

    assert (found, rows_of(batches)) == (size, sizes)


def test_a_slow_source_is_not_waited_for() -> None:
    clock, read = Clock(), list[int]()

    def slow() -> Iterator[pa.RecordBatch]:
        for number in range(20):
            clock.now += 0.3
            read.append(number)
            yield batch(1)

    size, batches = look_ahead(slow(), monotonic=clock)

    assert (size, len(read)) == (DEFAULT_CHUNK_SIZE, 4)
    assert rows_of(batches) == [1] * 20
