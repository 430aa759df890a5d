"""How many items a job may put into Redis: told at once where that is quick, else when it is passed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from clipfleet.errors import TooManyItemsError
from clipfleet.sources.batches import item_batch
from clipfleet.submit.redis_bound import within_redis
from tests.support.doubles import Clock


class Batches:
    """Batches of ten items; each one takes some time, and tells that it was taken."""

    def __init__(self, count: int, clock: Clock, seconds: float = 0.0) -> None:
        self.taken = 0
        self._count, self._clock, self._seconds = count, clock, seconds

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for number in range(self._count):
            self.taken += 1
            self._clock.now += self._seconds
            yield item_batch(10 * number, None, pa.array(["/a.jpg"] * 10, pa.string()))


def indexes(batches: Iterator[pa.RecordBatch]) -> list[int]:
    return [index for batch in batches for index in batch.column("item_index").to_pylist()]


def bounded(batches: Batches, clock: Clock, **options: Any) -> Iterator[pa.RecordBatch]:
    return within_redis(iter(batches), **{"look_ahead": True, "max_items": 49, "monotonic": clock, **options})


@pytest.mark.parametrize("look_ahead", [True, False])
def test_as_many_as_may_be_pass_unchanged(clock: Clock, look_ahead: bool) -> None:
    passed = bounded(Batches(5, clock), clock, look_ahead=look_ahead, max_items=50)

    assert indexes(passed) == list(range(50))


def test_too_many_are_told_before_the_first_is_used(clock: Clock) -> None:
    with pytest.raises(TooManyItemsError, match=r"more than 49 items.* give an `output=`"):
        bounded(Batches(5, clock), clock)


@pytest.mark.parametrize(("seconds", "look_ahead", "taken"), [(0.4, True, 3), (0, False, 0)])
def test_neither_a_slow_source_nor_a_stream_is_read_to_its_end_in_advance(
    clock: Clock, seconds: float, look_ahead: bool, taken: int
) -> None:
    batches = Batches(5, clock, seconds)

    passed = bounded(batches, clock, look_ahead=look_ahead)

    assert batches.taken == taken
    assert next(passed).num_rows == 10
    with pytest.raises(TooManyItemsError):
        indexes(passed)


def test_images_that_come_with_the_source_are_bounded_by_their_size(clock: Clock) -> None:
    size = next(iter(Batches(1, clock))).nbytes

    with pytest.raises(TooManyItemsError, match="MiB of items"):
        bounded(Batches(5, clock), clock, max_items=50, max_bytes=4 * size)
