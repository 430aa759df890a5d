"""What stored marks promise in a folder and on S3, see `clipfleet.marking.stored`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clipfleet.marking.stored import add_marks, stored_marks
from clipfleet.outputs import Output, open_output
from clipfleet.results.part_rows import PartRows

pytestmark = pytest.mark.long

NOW_MS = 1_700_000_000_000


@pytest.fixture(params=["folder", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Output:
    if request.param == "folder":
        return open_output(str(tmp_path / "out"))
    return open_output(f"{request.getfixturevalue('s3').uri}/jobs/one")


def line(verdict: str) -> str:
    about = {"item_index": 0, "label": "cat", "purpose": "fit", "inclusion_probability": 1.0}
    return json.dumps({**about, "verdict": verdict})


def verdicts(output: Output) -> list[str]:
    return [mark.verdict.value for mark in stored_marks(PartRows(output))]


def test_a_later_import_comes_after_all_others_whatever_its_clock_says(output: Output) -> None:
    times = {"yes": NOW_MS, "no": NOW_MS - 5000, "skip": NOW_MS}

    found = [add_marks(output, [line(verdict)], now_ms) for verdict, now_ms in times.items()]

    assert [one.is_new for one in found] == [True] * 3
    assert list(output.names("_marks/")) == [one.name for one in found]
    assert verdicts(output) == [*times]


def test_the_same_marks_are_stored_once(output: Output) -> None:
    first = add_marks(output, [line("yes")], NOW_MS)
    add_marks(output, [line("no")], NOW_MS)

    again = add_marks(output, [line("yes")], NOW_MS + 5000)

    assert (again.name, again.is_new) == (first.name, False)
    assert verdicts(output) == ["yes", "no"]


def test_what_removes_the_rows_leaves_the_marks(output: Output) -> None:
    add_marks(output, [line("yes")], NOW_MS)
    output.create("data/part-00000000.parquet", b"rows")

    output.sweep(())
    output.clear()

    assert verdicts(output) == ["yes"]
    assert output.read("data/part-00000000.parquet") is None


def test_what_others_put_beside_them_is_left_alone(output: Output) -> None:
    output.create("_marks/notes.txt", b"mine")
    add_marks(output, [line("yes")], NOW_MS)

    assert verdicts(output) == ["yes"]
    assert output.read("_marks/notes.txt") == b"mine"
