"""Jobs and rows as tables and lines."""

from __future__ import annotations

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from clipfleet.contract.brief import JobBrief
from clipfleet.contract.jobs import JobState
from clipfleet.ledger.jobs import JobStatus
from clipfleet.terminal.lists import job_table, row_lines, shortened
from tests.support.jobs import JOB_ID, make_status

PHOTOS = "/home/someone/projects/\u5199\u771f/shop/photos/of-november/2026-11"
RESULTS = "/home/someone/projects/shop/results/of-november/2026-11"
CREATED_MS = 1_764_000_000_000


def listed(**values: object) -> JobStatus:
    return make_status(
        brief=JobBrief("classify", PHOTOS, RESULTS, "cat, dog and 28 more"),
        asked_ms=CREATED_MS + 7_380_000, model="ViT-B-32:datacomp_xl_s13b_b90k", **values,
    )  # fmt: skip


STATUSES = [
    listed(state=JobState.COMPLETED_WITH_ERRORS, ok=97, failed=3, finished_ms=CREATED_MS + 45_000),
    listed(job_id="x" * 24, ok=1_200, total=30_000),
    make_status(state=JobState.FAILED, generation=2, finished_ms=CREATED_MS, asked_ms=CREATED_MS),
]


def printed(width: int | None) -> list[str]:
    console = Console(file=io.StringIO(), width=width or 1_000)
    console.print(job_table(STATUSES, width))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_jobs_fit_a_terminal_of_a_hundred_columns() -> None:
    lines = printed(100)

    assert max(map(cell_len, lines)) <= 100
    assert len(lines) == 3 + 2 * len(STATUSES)
    assert re.fullmatch(
        rf"{JOB_ID} +/\S+\u2026\S*2026-11 +ViT\S*\u2026\S*b90k +completed +100 +2 h", lines[3]
    )
    assert re.fullmatch(
        r"classify +/home\S*\u2026\S*2026-11 +cat.*\u2026.*28 more +with errors +3 +45 s", lines[4]
    )
    assert lines[5].split()[0] == "x" * 24  # ids are whole: they are copied into commands
    assert lines[5].endswith("1,200 of 30,000  2 h")


def test_a_wide_terminal_and_a_pipe_show_whole_values() -> None:
    wide, piped = printed(200), printed(None)

    assert not [line for line in (*wide, *piped) if "\u2026" in line]
    assert len(piped) == 2 + len(STATUSES)
    assert re.fullmatch(
        rf"{JOB_ID} +completed_with_errors +classify +{PHOTOS} +{RESULTS} +cat, dog and 28 more +ViT\S+b90k"
        r" +100 +97 +3 +2025-11-24 16:00:00 +2 h 3 min +45 s",
        piped[2],
    )


@pytest.mark.parametrize("width", [1, 40, 99])
def test_a_narrow_terminal_shows_the_job_ids_all_the_same(width: int) -> None:
    table = job_table(STATUSES, width)

    console = Console(file=io.StringIO(), width=300)
    console.print(table)
    assert JOB_ID in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("photos", 6, "photos"),
        ("/home/photos/a", 10, "/ho\u2026otos/a"),
        ("\u5199\u771f\u5199\u771f\u5199\u771f", 7, "\u5199\u2026\u5199\u771f"),
    ],
)
def test_the_middle_of_a_long_text_is_cut_out(text: str, width: int, expected: str) -> None:
    assert shortened(text, width) == expected


def test_a_row_is_shown_with_one_column_per_line() -> None:
    row = {
        "item_index": 3, "uri": "a\nb\x1b[1m", "score": 0.976600003, "labels": ["cat", "dog"],
        "scores": [0.75, 1 / 3], "error_code": None, "embedding": [0.5] * 512, "tags": {"a": 1},
    }  # fmt: skip

    assert list(row_lines(row)) == [
        "item_index  3",
        r"uri         a\nb\x1b[1m",
        "score       0.9766",
        "labels      cat, dog",
        "scores      0.75, 0.333333",
        "error_code",
        "embedding   512 values: 0.5, 0.5, 0.5, 0.5, ...",
        'tags        {"a": 1}',
    ]
