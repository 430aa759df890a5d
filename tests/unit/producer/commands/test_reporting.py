"""`clipfleet report` by its command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clipfleet.commands import app
from clipfleet.errors import ClipfleetError, UsageError
from tests.support.reports import place_rows, rows_by_formula

pytestmark = pytest.mark.usefixtures("folder")


def run(*words: str) -> str:
    result = CliRunner().invoke(app, ["report", *words])
    if isinstance(result.exception, ClipfleetError):
        raise result.exception
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


@pytest.fixture(autouse=True)
def _output(folder: Path) -> None:
    place_rows(folder / "out", rows_by_formula(100)[0])


def test_it_writes_a_page_and_says_what_is_in_it(folder: Path) -> None:
    found = json.loads(run("out", "-o", "page.html", "--count", "5", "--json"))

    assert found == {
        "report": "page.html", "rows": 100, "ok": found["ok"], "failed": 100 - found["ok"], "to_mark": 30,
        "images": 0, "size_bytes": (folder / "page.html").stat().st_size,
    }  # fmt: skip
    run("out", "-o", "page.html")  # again


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("out", "-o", "page.txt"), "page.txt: a report is written as .html"),
        (("out", "--label", "wolf"), "there is no label 'wolf'"),
        (("out", "--truth-column", "animal"), "the source has no column 'animal'"),
        (("out", "--marks", "none.csv"), "none.csv"),
        (("out", "--labels", "none.yaml"), "none.yaml"),
        (("out", "--compare", "./nowhere"), "nowhere"),
    ],
)
def test_mistakes_are_explained(folder: Path, words: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ClipfleetError) as raised:
        run(*words)
    assert problem in str(raised.value)
    assert list(folder.glob("*.html")) == []


def test_another_file_is_not_replaced(folder: Path) -> None:
    (folder / "mine.html").write_text("mine")
    with pytest.raises(UsageError, match="is no report"):
        run("out", "-o", "mine.html")
    assert (folder / "mine.html").read_text() == "mine"
