"""A search finds what a product with all vectors finds, among the rows that a condition holds for."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clipfleet.errors import UsageError
from clipfleet.labels.metrics import unit
from clipfleet.outputs.folder import FolderOutput
from clipfleet.results.part_rows import PartRows
from clipfleet.results.store_rows import store_rows
from clipfleet.search.searching import Wanted, search
from clipfleet.store.indexing import build_index
from clipfleet.store.place import StorePlace
from tests.support.store_rows import LISTED_AT, addresses_of, item, make_store, stored_rows
from tests.support.stored_vectors import place_vectors, unit_vectors, vector_rows

ROWS, PART = 3000, 256
VECTORS = unit_vectors(1, ROWS, 32)
QUERY = unit_vectors(2, 1, 32)[0]


@pytest.fixture
def reader(output: FolderOutput) -> PartRows:
    """An output of many parts; every seventh row has failed."""
    tables = []
    for start in range(0, ROWS, PART):
        indexes = range(start, min(start + PART, ROWS))
        tables.append(
            vector_rows(
                start, VECTORS[start : start + PART], "f" * 16,
                failed={index for index in indexes if index % 7 == 0},
                shelf=pa.array([f"shelf {index % 3}" for index in indexes]),
            )
        )  # fmt: skip
    place_vectors(output, tables, source={"kind": "csv", "uri": "/list.csv", "extra_columns": ("shelf",)})
    return PartRows(output)


def best(top: int, keep: np.ndarray) -> list[str]:
    cosines = unit(VECTORS.astype(np.float16)) @ QUERY
    order = [index for index in np.argsort(-cosines, kind="stable") if keep[index]]
    return [f"item-{index:08d}" for index in order[:top]]


INDEXES = np.arange(ROWS)
OK = INDEXES % 7 != 0


def test_the_best_rows_in_order(reader: PartRows) -> None:
    found = search(reader, QUERY * 5, Wanted(100)).rows

    assert found["item_id"].to_pylist() == best(100, OK)
    assert found.column_names == ["similarity", "item_id", "uri"]
    scores = found["similarity"].to_pylist()
    assert scores == sorted(scores, reverse=True)
    assert 0.3 < scores[0] < 1


@pytest.mark.parametrize(
    ("where", "keep"),
    [
        ("shelf = 'shelf 1'", OK & (INDEXES % 3 == 1)),
        ("Item_Index > 2990 OR width = 641", OK & ((INDEXES > 2990) | (INDEXES % 7 == 1))),
        ("uri LIKE '%/05/%' AND content_hash IS NOT NULL", OK & (INDEXES % 97 == 5)),
        ("1 = 1", OK),
        ("shelf = 'none'", np.zeros(ROWS, bool)),
    ],
)
def test_only_rows_that_the_condition_holds_for(reader: PartRows, where: str, keep: np.ndarray) -> None:
    found = search(reader, QUERY, Wanted(10, where=where)).rows

    assert found["item_id"].to_pylist() == best(10, keep)


def test_further_columns(reader: PartRows) -> None:
    found = search(reader, QUERY, Wanted(3, ("item_id", "uri", "shelf", "width"))).rows

    row = found.to_pylist()[0]
    index = int(row["item_id"].rpartition("-")[2])
    assert (row["shelf"], row["width"]) == (f"shelf {index % 3}", 640 + index % 7)


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("colour = 'red'", "no column colour; columns: item_index, item_id, "),
        ("width = 'wide'", '"wide" is not of the type Int32 of its column'),
        ("width >", "Expected: an expression, found: its end"),
        ("shelf = 'a' AND (width > 3", "Expected: ), found: its end"),
        ("width + shelf > 1", "Cannot coerce arithmetic expression Int32 + Utf8 to valid types"),
    ],
)
def test_a_condition_is_refused_in_words_of_those_who_wrote_it(
    reader: PartRows, where: str, words: str
) -> None:
    with pytest.raises(UsageError) as raised:
        search(reader, QUERY, Wanted(3, where=where))

    said = str(raised.value)
    assert said.startswith(f"the condition {where!r} is invalid: {words}")
    for jargon in ("user input", "Error", "Schema", "SELECT", "_rowid", "Received"):
        assert jargon not in said
    assert said.count("content_hash") <= 1, "the columns are listed once"


@pytest.mark.parametrize(
    "where",
    [
        "colour = 'red'",
        "width = 'wide'",
        "width >",
        "width",
        "shelf = 'a' AND (width > 3",
        "shelf = N'x'",
        "shelf = $$x$$",
        "shelf = $1",
        "shelf = :x",
        "shelf IN ('a', b'x')",
        "width = ?",
        "width / 0 = 1",
        "shelf.name = 1",
        "count(*) > 1",
        "width > 3 width > 700",
        "width > 3; width > 700",
        "width > 3) OR (width > 700",
        "width > 3 'wide'",
    ],
)
def test_a_condition_that_is_invalid(reader: PartRows, capfd: pytest.CaptureFixture[str], where: str) -> None:
    with pytest.raises(UsageError, match=r"the condition .* is invalid") as raised:
        search(reader, QUERY, Wanted(3, where=where))

    assert ".rs:" not in str(raised.value)
    assert capfd.readouterr().err == ""  # Lance prints its panics


@pytest.mark.parametrize(
    "where",
    [
        "shelf = '$1 N''x'' ?' OR 1 = 1",
        "\"shelf\" != '' /* ? */ -- :x",
        "shelf != '' AND date '2026-11-30' > date'2026-11-01'",
    ],
)
def test_a_condition_whose_texts_look_like_what_is_refused(reader: PartRows, where: str) -> None:
    assert len(search(reader, QUERY, Wanted(3, where=where)).rows) == 3


def test_a_column_that_is_unknown(reader: PartRows) -> None:
    with pytest.raises(UsageError, match="no column 'colour'; their columns are item_index, "):
        search(reader, QUERY, Wanted(3, ("item_id", "colour")))


def test_an_output_without_vectors(output: FolderOutput) -> None:
    place_vectors(output, [vector_rows(0, VECTORS[:3], "f" * 16, failed=range(3))])

    with pytest.raises(UsageError, match="no row has a vector"):
        search(PartRows(output), QUERY, Wanted(3))


class TestOfAStore:
    @pytest.fixture
    def place(self, tmp_path: Path) -> StorePlace:
        """A store with vectors of a growing angle to the first one."""
        items = [item(f"i{number}", shelf=number % 3) for number in range(9)]
        place = make_store(tmp_path / "store", items)
        dataset = store_rows(place).dataset
        rows = stored_rows(items).to_pylist()
        for number, row in enumerate(rows):
            row["embedding"] = [math.cos(number / 10), math.sin(number / 10), 0.0, 0.0]
            row["gone_at"] = LISTED_AT if number == 1 else None
        fresh = pa.Table.from_pylist(rows, dataset.schema).to_batches()
        dataset.replace(addresses_of(dataset, items), fresh, {})
        return place

    def ids(self, place: StorePlace, wanted: Wanted, *, exact: bool = False) -> tuple[list[str], bool]:
        found = search(store_rows(place), np.array([2, 0, 0, 0], np.float32), wanted, exact=exact)
        assert found.rows.column_names == ["similarity", *wanted.columns]
        return found.rows["item_id"].to_pylist(), found.is_exact

    def test_rows_whose_items_are_there(self, place: StorePlace) -> None:
        assert self.ids(place, Wanted(3)) == (["i0", "i2", "i3"], True)

    def test_with_a_condition_and_a_column(self, place: StorePlace) -> None:
        wanted = Wanted(9, ("item_id", "shelf"), "shelf = 1 OR shelf = 2")

        assert self.ids(place, wanted) == (["i2", "i4", "i5", "i7", "i8"], True)
        assert self.ids(place, Wanted(3, where="shelf = 2 -- the last one"))[0] == ["i2", "i5", "i8"]

    def test_by_an_index_unless_all_are_to_be_compared(self, place: StorePlace) -> None:
        build_index(store_rows(place).dataset)

        assert self.ids(place, Wanted(3)) == (["i0", "i2", "i3"], False)
        assert self.ids(place, Wanted(3), exact=True) == (["i0", "i2", "i3"], True)

    def test_mistakes(self, place: StorePlace) -> None:
        with pytest.raises(UsageError, match="the rows have no column 'embedding'"):
            self.ids(place, Wanted(3, ("embedding",)))
        for where in ("colour = 'red'", "shelf = N'x'", "shelf = 1) OR (1"):
            with pytest.raises(UsageError) as raised:
                self.ids(place, Wanted(3, where=where))
            assert str(raised.value).startswith(f"the condition {where!r} is invalid")

    def test_a_condition_on_a_time(self, place: StorePlace) -> None:
        with pytest.raises(UsageError, match=r'"2026-10-31" is no time: write times as timestamp') as raised:
            self.ids(place, Wanted(3, where="embedded_at > '2026-10-31'"))
        for written in re.findall(r"timestamp '[^']+'", str(raised.value)):
            assert self.ids(place, Wanted(3, where=f"embedded_at < {written}"))[0] == ["i0", "i2", "i3"]

    def test_no_cosine_is_above_1(self, place: StorePlace) -> None:
        query = np.array([math.cos(0.3), math.sin(0.3), 0, 0], np.float32)
        for vector in query * np.linspace(1, 3, 50, dtype=np.float32)[:, None]:
            assert search(store_rows(place), vector, Wanted(1)).rows["similarity"][0].as_py() <= 1
