"""Rows that were asked for: failed, with a label, sorted, with some columns, some of them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from clipfleet.errors import UsageError
from clipfleet.outputs.folder import FolderOutput
from clipfleet.results.formats import write
from clipfleet.results.kinds import ResultFormat
from clipfleet.results.part_rows import PartRows
from clipfleet.results.selection import Selection
from tests.support.rows import accepting, add_part, classified, failed

SCORES = [0.5, 0.9, None, 0.1, 0.9]


@pytest.fixture
def output(tmp_path: Path) -> FolderOutput:
    """Two parts; the third row has failed."""
    output = FolderOutput(tmp_path / "out")
    rows = [
        failed(index) if score is None else {**classified(index), "score": score, "label": f"l{index % 2}"}
        for index, score in enumerate(SCORES)
    ]
    add_part(output, 0, rows[:2])
    add_part(output, 1, rows[2:])
    return output


def found(output: FolderOutput, limit: int | None = None, **selection: Any) -> list[dict[str, Any]]:
    stream = io.BytesIO()
    write(PartRows(output), ResultFormat.JSONL, stream, limit=limit, selection=Selection(**selection))
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def indexes(output: FolderOutput, limit: int | None = None, **selection: Any) -> list[int]:
    return [row["item_index"] for row in found(output, limit, **selection)]


def test_an_empty_name_is_no_column(output: FolderOutput) -> None:
    with pytest.raises(UsageError, match="no column ''"):
        found(output, sort="")


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"failed": True}, [2]),
        ({"label": "l1"}, [1, 3]),
        ({"label": "nothing"}, []),
        ({"sort": "score"}, [3, 0, 1, 4, 2]),  # equal ones in source order, those without a value last
        ({"sort": "score", "descending": True}, [1, 4, 0, 3, 2]),
        ({"sort": "item_index", "descending": True}, [4, 3, 2, 1, 0]),
        ({"sort": "score", "label": "l0"}, [0, 4]),
    ],
)
def test_rows(output: FolderOutput, selection: dict[str, Any], expected: list[int]) -> None:
    assert indexes(output, **selection) == expected
    for limit in (1, 2, 4):
        assert indexes(output, limit, **selection) == expected[:limit]


@pytest.mark.parametrize("part_rows", [slice(0, 5), slice(1, 5), slice(1, 2)])
def test_rows_that_accept_a_label_have_it(tmp_path: Path, part_rows: slice) -> None:
    output = FolderOutput(tmp_path / "accepting")
    rows = [accepting(0, "dog"), accepting(1), failed(2), accepting(3, "cat", "dog"), accepting(4, "cat")]
    add_part(output, 0, rows[part_rows], accepted=["accepted"])

    expected = [one["item_index"] for one in rows[part_rows] if "dog" in (one.get("accepted") or ())]
    assert indexes(output, label="dog") == expected


def test_columns_are_those_that_were_named_in_that_order(output: FolderOutput) -> None:
    rows = found(output, columns=("score", "item_id"), sort="item_index")

    assert [list(row) for row in rows] == [["score", "item_id"]] * len(SCORES)


def test_a_table_of_chosen_columns(output: FolderOutput) -> None:
    stream = io.BytesIO()
    selection = Selection(columns=("item_index", "labels", "score"), failed=False, sort="score")
    write(PartRows(output), ResultFormat.TABLE, stream, limit=1, selection=selection)

    heading, _, first, note = stream.getvalue().decode().splitlines()

    assert heading.split() == ["item_index", "labels", "score"]
    assert (first.split()[0], first.split()[-1]) == ("3", "0.1")
    assert "raise --limit" in note


@pytest.mark.parametrize(
    ("selection", "problem"),
    [
        ({"sort": "skore"}, "no column 'skore'; their columns are item_index, item_id, "),
        ({"columns": ("item_id", "nope")}, "no column 'nope'"),
        ({"sort": "labels"}, "holds lists, which have no order"),
    ],
)
def test_what_cannot_be_is_named(output: FolderOutput, selection: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        found(output, **selection)
