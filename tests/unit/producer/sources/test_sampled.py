"""Which items a sample has, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest

from clipfleet.errors import SourceError
from clipfleet.sources import ReadOptions, sampled, source_of
from clipfleet.sources.batches import item_batch
from clipfleet.sources.iterable import Item
from clipfleet.sources.sampled import SampledSource
from tests.support.sources import items, table_of

COUNT = 20_000


def chosen(given: list[Item], size: int) -> list[str]:
    return [row["uri"] for row in items(source_of(given, ReadOptions(sample=size)))]


def named(number: int) -> Item:
    return {"id": f"sku-{number}", "url": f"https://h/{number}.jpg"}


URLS: list[Item] = [f"https://h/{number}.jpg" for number in range(COUNT)]


@pytest.mark.parametrize("size", [1, 511, 513, 5_000, COUNT - 1, COUNT, COUNT + 1])
def test_it_has_exactly_so_many_items_or_all(size: int) -> None:
    source = SampledSource(source_of(URLS, ReadOptions()), size)

    found = table_of(source)

    assert found.num_rows == min(size, COUNT)
    assert source.whole_items == COUNT
    numbers = list(map(int, found["item_id"].to_pylist()))
    assert numbers == sorted(numbers)
    assert [URLS[number] for number in numbers] == found["uri"].to_pylist()


def test_all_parts_of_a_source_are_in_it_alike() -> None:
    found = [int(uri[10:-4]) for uri in chosen(URLS, 4_000)]

    for start in range(0, COUNT, COUNT // 4):
        assert 900 < sum(start <= number < start + COUNT // 4 for number in found) < 1_100


def test_items_with_ids_are_chosen_whatever_their_order_and_what_else_there_is() -> None:
    few, more = [named(n) for n in range(2_000)], [named(n) for n in range(2_100)]

    found = chosen(few, 50)

    assert chosen(few[::-1], 50) == found[::-1]
    assert set(chosen(more, 50)) - set(chosen(more[2_000:], 100)) <= set(found)
    assert set(found) < set(chosen(few, 51))


def test_equal_urls_are_chosen_one_by_one() -> None:
    """Else an estimate would depend on whether the hash of a common URL happens to be small."""
    given = ["https://h/none.jpg" if n % 10 < 3 else f"https://h/{n}.jpg" for n in range(10_000)]

    assert 0.27 < chosen([*given], 2_000).count("https://h/none.jpg") / 2_000 < 0.33


class Long:
    """A source of many batches; notes the most memory that was in use while it was read."""

    description = source_of(URLS[:1], ReadOptions()).description

    def __init__(self, count: int) -> None:
        self.count = count
        self.peak_bytes = 0

    def batches(self) -> Iterator[pa.RecordBatch]:
        before = pa.total_allocated_bytes()
        for number in range(self.count):
            uris = pa.array([f"/{number}/{n}.jpg" + "x" * 200 for n in range(8192)], pa.string())
            yield item_batch(8192 * number, None, uris)
            self.peak_bytes = max(self.peak_bytes, pa.total_allocated_bytes() - before)


def test_memory_does_not_grow_with_the_source() -> None:
    short, long = Long(8), Long(80)
    for source in (short, long):
        assert table_of(SampledSource(source, 1_000)).num_rows == 1_000

    assert long.peak_bytes < 1.5 * short.peak_bytes


def test_images_of_a_sample_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampled, "_MAX_HELD_BYTES", 1 << 20)
    images: list[Item] = [bytes(100_000)] * 30

    assert len(items(source_of(images, ReadOptions(sample=5)))) == 5
    with pytest.raises(SourceError, match=r"a sample of 20 items holds more than 1 MiB .*: choose a smaller"):
        items(source_of(images, ReadOptions(sample=20)))


def test_an_empty_source_fails_as_it_does_without_a_sample() -> None:
    with pytest.raises(SourceError, match="no items"):
        source_of([], ReadOptions(sample=5))
