"""What `clipfleet watch --all` shows: a table that fits the terminal, or lines now and then."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from clipfleet.contract.brief import JobBrief
from clipfleet.contract.jobs import JobState
from clipfleet.ledger.status import JobStatus, UnfinishedJobs
from clipfleet.ledger.values import WorkerFacts
from clipfleet.terminal.all_jobs import AllJobsProgress
from tests.support.doubles import Clock
from tests.support.jobs import make_status

LONG_MODEL = "ViT-B-32:datacomp_xl_s13b_b90k"
WORKERS = [WorkerFacts(name, "host", 1, ("demo",)) for name in "ab"]


def status(job_id: str, **values: Any) -> JobStatus:
    brief = JobBrief("classify", "/images", "/out", "cat, dog")
    return make_status(**{"job_id": job_id, "brief": brief, "leased_chunks": 1, "total": 1_000, **values})


class Bench:
    """A display with a clock, on a terminal of a size or on none."""

    def __init__(self, size: tuple[int, int] | None, **options: Any) -> None:
        self.clock = Clock()
        width, height = size or (80, 25)
        self.screen = io.StringIO()
        self.console = Console(
            file=self.screen, force_terminal=size is not None, width=width, height=height, color_system=None
        )
        self.progress = AllJobsProgress(console=self.console, monotonic=self.clock, **options)

    def after(self, seconds: float, *jobs: JobStatus, left_out: int = 0) -> list[JobStatus]:
        self.clock.now += seconds
        return self.progress.update(UnfinishedJobs(jobs, left_out), WORKERS)

    def table(self) -> list[str]:
        """The table as it is now."""
        console = Console(
            file=io.StringIO(), width=self.console.width, height=self.console.height, color_system=None
        )
        console.print(self.progress._drawn())
        text = console.file.getvalue()  # type: ignore[attr-defined]
        return [line.rstrip() for line in text.splitlines()]


def test_each_job_has_its_counts_rate_time_left_and_workers() -> None:
    bench = Bench((120, 25))
    for done in range(0, 600, 100):
        bench.after(
            1,
            status("nightly", ok=done, ran=done, failed=3, codes={"timeout": 3}, leased_chunks=7),
            status(
                "other",
                model=LONG_MODEL,
                state=JobState.PAUSED,
                leased_chunks=0,
                created_ms=0,
                asked_ms=5_000,
            ),
        )

    head, below, _, first, second, third, fourth, *problems = bench.table()

    assert head.split() == ["job", "model", "progress", "items", "rate", "workers"]
    assert below.split() == ["task", "lane", "state", "failed", "left", "chunks"]
    assert first.split()[:2] == ["nightly", "demo"] and first.split()[-5:] == [
        "503",
        "of",
        "1,000",
        "100/s",
        "2",
    ]
    assert second.split() == ["classify", "normal", "running", "3", "5", "s", "7"]
    assert third.split()[0] == "other" and third.split()[-4:] == ["0", "of", "1,000", "0"]
    assert fourth.split() == ["classify", "normal", "paused", "0", "0"]
    assert problems == ["job other is paused: resume it with `clipfleet resume other`"]


@pytest.mark.parametrize("width", [200, 120, 100, 80, 60, 48, 40])
def test_the_table_fits_the_terminal(width: int) -> None:
    bench = Bench((width, 25))
    for done in (0, 1_000, 2_000, 3_000, 4_000):
        bench.after(1, status("nightly-2026-11-30", model=LONG_MODEL, total=123_456, ok=done, ran=done))

    lines = bench.table()

    assert max(map(len, lines)) <= width
    assert any("nightly-2026-11-30" in line and "4,000 of 123,456" in line for line in lines)
    assert ("1,000/s" in "".join(lines)) == (width > 40)
    assert (LONG_MODEL in "".join(lines)) == (width > 100)


def test_more_jobs_than_lines_are_counted() -> None:
    bench = Bench((100, 24))
    bench.after(0, *(status(f"job-{number}") for number in range(50)), left_out=7)

    lines = bench.table()

    assert len(lines) <= 24
    assert [line.split()[0] for line in lines if line.startswith("job-")] == [f"job-{n}" for n in range(10)]
    assert lines[-1] == "and 47 more: list them with `clipfleet jobs`"


def test_names_with_control_characters_stay_in_their_cells() -> None:
    bench = Bench((200, 25))
    bench.after(0, status("job", model="demo\x1b[2J\nx\u202e"))

    assert "demo\\x1b[2J\\nx\\u202e" in "\n".join(bench.table())


def test_a_job_that_has_ended_leaves_the_table_and_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench((100, 25))
    bench.after(0, status("one"), status("two"))
    ended = status("one", state=JobState.COMPLETED, ok=1_000, created_ms=0, finished_ms=75_000)

    assert bench.after(1, status("two"), status("new"), ended) == [ended]
    assert bench.progress.shown == ("two", "new")
    assert [line.split()[0] for line in bench.table()[3::2]] == ["two", "new"]
    assert capsys.readouterr().err == "one completed in 1 min 15 s: 1,000 of 1,000, 0 failed\n"
    assert bench.after(1, status("two"), ended) == []


def test_without_a_terminal_there_are_lines_every_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(None)
    with bench.progress:
        for done in range(0, 1_100, 100):
            bench.after(1, status("job", ok=done, ran=done), status("b"), left_out=done)

    assert capsys.readouterr().err.splitlines() == [
        "job running: 900 of 1,000, 0 failed, 100/s, 1 s left",
        "b running: 0 of 1,000, 0 failed, ?/s, ? left",
        "and 900 more jobs",
    ]
    assert bench.screen.getvalue() == ""


def test_why_nothing_is_done_is_said_once_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(None)
    waits = status("job", model="other", leased_chunks=0, created_ms=0, asked_ms=5_000)
    for _ in range(70):
        bench.after(1, waits)

    said = [line for line in capsys.readouterr().err.splitlines() if "no connected worker" in line]
    assert (
        said
        == [
            "no connected worker serves other (they serve: demo): "
            "start one with `clipfleet-worker run --models other`"
        ]
        * 2
    )


@pytest.mark.parametrize("jobs", [[status("left")], []])
def test_the_last_table_stays_only_if_jobs_are_left(jobs: Sequence[JobStatus]) -> None:
    bench = Bench((100, 25))
    with bench.progress:
        bench.after(0, status("left"))
        bench.after(1, *jobs)

    assert bench.screen.getvalue().rstrip("\x1b[?25h").endswith("A\x1b[2K") == (not jobs)
