"""How the row of one item is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clipfleet.errors import JobNotFoundError, ResultsNotReadyError
from clipfleet.outputs.folder import FolderOutput
from clipfleet.results.one_row import find_row
from clipfleet.results.part_rows import PartRows
from tests.support.rows import add_part, embedded, failed, row


class CountedOutput(FolderOutput):
    """Counts the parts that are opened."""

    opened = 0

    def open(self, name: str) -> Any:
        self.opened += "part-" in name
        return super().open(name)


@pytest.fixture
def counted(folder: Path) -> CountedOutput:
    """64 parts of one to three rows; half of them have ids of their own."""
    output, index = CountedOutput(folder / "out"), 0
    for chunk_id in range(64):
        rows = [
            row(number, item_id=f"id-{number}" if chunk_id % 2 else str(number))
            for number in range(index, index + 1 + chunk_id % 3)
        ]
        add_part(output, chunk_id, rows)
        index += len(rows)
    return output


@pytest.fixture
def small(folder: Path) -> FolderOutput:
    output = FolderOutput(folder / "out")
    add_part(output, 0, [embedded(0, 1.0, 2.0), row(1, item_id="7"), row(2, item_id="same")])
    add_part(output, 1, [failed(3), *(row(index, item_id="same") for index in range(4, 20))])
    add_part(output, 2, [row(20, uri=str(folder / "photos" / "b.jpg"), item_id="https://host/c.jpg")])
    return output


@pytest.mark.parametrize(
    ("item", "index", "matched", "count"),
    [
        ("img0", 0, "item_id", 1),
        ("/p/3.jpg", 3, "uri", 1),
        ("photos/b.jpg", 20, "uri", 1),
        ("./photos/../photos/b.jpg", None, "", 0),
        ("https://host/c.jpg", 20, "item_id", 1),
        ("same", 2, "item_id", 17),
        ("3", 3, "item_index", 1),
        ("7", 1, "item_id", 1),  # an id has priority over an index
        ("19", 19, "item_index", 1),
        ("21", None, "", 0),
        ("1" * 40, None, "", 0),
        ("-1", None, "", 0),
        ("\u0663", None, "", 0),
    ],
)
def test_an_item_is_named_by_id_uri_or_index(
    small: FolderOutput, item: str, index: int | None, matched: str, count: int
) -> None:
    if index is None:
        with pytest.raises(JobNotFoundError, match="no row of item"):
            find_row(PartRows(small), item)
        return

    found = find_row(PartRows(small), item)

    assert (found.row["item_index"], found.matched, found.count) == (index, matched, count)


def test_of_several_rows_the_first_is_shown_and_the_others_are_named(small: FolderOutput) -> None:
    found = find_row(PartRows(small), "same")

    assert (found.count, found.others) == (17, list(range(4, 14)))


def test_a_row_has_all_columns(small: FolderOutput) -> None:
    assert find_row(PartRows(small), "0").row == embedded(0, 1.0, 2.0)


def test_an_index_is_found_without_reading_all_parts(counted: CountedOutput) -> None:
    for index in (0, 1, 126):
        counted.opened = 0

        found = PartRows(counted).row_at(index)

        assert found is not None
        assert found["item_index"].to_pylist() == [index]
        assert counted.opened <= 8
    assert PartRows(counted).row_at(127) is None

    counted.opened = 0
    assert find_row(PartRows(counted), "0").row["item_index"] == 0  # its id is its index: no other has it
    assert counted.opened <= 8


def test_without_rows_there_is_none_to_show(folder: Path) -> None:
    with pytest.raises(ResultsNotReadyError):
        find_row(PartRows(FolderOutput(folder / "out")), "3")
