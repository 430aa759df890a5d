"""What people are told while a job runs: a bar or a line now and then, and why nobody works."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from clipfleet.contract.bottleneck import Meters
from clipfleet.contract.jobs import JobState
from clipfleet.errors import RedisUnavailableError
from clipfleet.ledger.jobs import JobStatus, WorkerFacts
from clipfleet.terminal import console, progress
from clipfleet.terminal.progress import JobProgress, duration_words, missing_worker_words, rate_words
from tests.support.doubles import Clock
from tests.support.jobs import JOB_ID, make_status

WRITES = Meters({"write": 9.0, "fetch, decode, encode": 1.0})
WORKING = make_status(leased_chunks=2, ok=30, failed=2)
WAITING = make_status()


def worker(*models: str) -> WorkerFacts:
    return WorkerFacts("w", "host", 1, models)


class Bench:
    """A progress display with a clock, and the workers it sees."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.workers: list[WorkerFacts] = [worker("demo")]
        self.asked = 0
        self.progress = JobProgress(self._workers, monotonic=self.clock, **options)

    def _workers(self) -> Sequence[WorkerFacts]:
        self.asked += 1
        return self.workers

    def after(self, seconds: float, status: JobStatus) -> None:
        self.clock.now += seconds
        self.progress.update(status)


class TestLines:
    def test_one_every_ten_seconds_with_rate_and_time_left(self, capsys: pytest.CaptureFixture[str]) -> None:
        bench = Bench()
        with bench.progress:
            for ran in range(0, 4100, 100):
                bench.after(0.5, make_status(leased_chunks=1, total=4500, ok=ran, ran=ran))

        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.splitlines() == [
            f"{JOB_ID} running: 1,900 of 4,500, 0 failed, 200/s, 13 s left",
            f"{JOB_ID} running: 3,900 of 4,500, 0 failed, 200/s, 3 s left",
        ]

    def test_what_is_not_known_is_a_question_mark(self, capsys: pytest.CaptureFixture[str]) -> None:
        submitting = make_status(state=JobState.SUBMITTING, sealed=False, leased_chunks=1)
        Bench().after(10, submitting)
        Bench().after(10, make_status(state=JobState.FINISHING, ok=100))

        assert capsys.readouterr().err.splitlines() == [
            f"{JOB_ID} submitting: 0 of 100 so far, 0 failed, ?/s, ? left",
            f"{JOB_ID} finishing: 100 of 100, 0 failed",
        ]

    def test_the_commonest_errors_and_the_limit(self, capsys: pytest.CaptureFixture[str]) -> None:
        codes = {"timeout": 3, "not_found": 40, "empty": 1, "tls_failed": 2}
        Bench().after(10, make_status(leased_chunks=1, ok=54, failed=46, codes=codes, ran=100, meters=WRITES))

        (line,) = capsys.readouterr().err.splitlines()
        assert "46 failed (40 not_found, 3 timeout, 2 tls_failed), " in line
        assert line.endswith(" left; write: writing parts takes 90 % of the chunks' time")

    def test_quiet_is_quiet_as_long_as_somebody_works(self, capsys: pytest.CaptureFixture[str]) -> None:
        bench = Bench(quiet=True)
        with bench.progress:
            bench.after(100, WORKING)

        assert capsys.readouterr().err == ""

    def test_a_snapshot_at_the_very_start_divides_by_nothing(self) -> None:
        Bench().after(0, make_status(ok=100))


class TestBar:
    @pytest.fixture
    def terminal(self, monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
        stream = io.StringIO()
        shown = Console(file=stream, force_terminal=True, width=120, highlight=False)
        monkeypatch.setattr(progress, "stderr", shown)
        monkeypatch.setattr(console, "stderr", shown)
        return stream

    def test_a_terminal_gets_a_bar_in_place_of_lines(self, terminal: io.StringIO) -> None:
        bench = Bench()
        with bench.progress:
            bench.after(1, make_status(leased_chunks=1, total=1000))
            for ran in (100, 200, 300, 400, 500):
                status = make_status(
                    leased_chunks=1, total=1000, ok=ran - 20, failed=20, ran=ran, meters=WRITES
                )
                bench.after(4, replace(status, codes={"empty": 20}))

        shown = terminal.getvalue()
        assert "500/1000" in shown
        assert "25/s, 20 s left" in shown
        assert "20 failed (20 empty); write: writing parts takes 90 % of the chunks' time" in shown
        assert JOB_ID not in shown

    def test_what_others_have_named_moves_no_cursor(self, terminal: io.StringIO) -> None:
        bench = Bench()
        with bench.progress:
            bench.after(1, make_status(leased_chunks=1, failed=1, codes={"a\x1b[2Jb [red]c[/]": 1}))

        assert "1 failed (1 a\\x1b[2Jb [red]c[/])" in terminal.getvalue()

    def test_quiet_has_none(self, terminal: io.StringIO) -> None:
        bench = Bench(quiet=True)
        with bench.progress:
            bench.after(20, WORKING)

        assert terminal.getvalue() == ""

    def test_it_is_gone_whatever_ends_the_wait(self, terminal: io.StringIO) -> None:
        bench = Bench()
        with pytest.raises(KeyboardInterrupt), bench.progress:
            bench.after(1, make_status(total=0))
            raise KeyboardInterrupt

        assert terminal.getvalue().endswith("\x1b[?25h")  # the cursor is back


class TestComplaints:
    def test_a_worker_has_three_seconds_to_start(self, capsys: pytest.CaptureFixture[str]) -> None:
        bench = Bench()
        bench.workers = []

        bench.after(2.9, WAITING)
        assert capsys.readouterr().err == ""
        bench.after(0.1, WAITING)
        assert "no worker is connected" in capsys.readouterr().err

    def test_it_is_said_again_after_a_minute(self, capsys: pytest.CaptureFixture[str]) -> None:
        bench = Bench(quiet=True)
        bench.workers = []
        for _ in range(125):
            bench.after(1, WAITING)

        assert len(capsys.readouterr().err.splitlines()) == 3  # at 3, 63 and 123 seconds

    @pytest.mark.parametrize(
        "status", [WORKING, *(make_status(state=state) for state in JobState if state.is_final)]
    )
    def test_where_somebody_works_or_all_is_over_nobody_asks(self, status: JobStatus) -> None:
        bench = Bench(quiet=True)
        bench.workers = []
        bench.after(100, status)

        assert bench.asked == 0

    def test_also_those_who_asked_for_json_are_told(self, capsys: pytest.CaptureFixture[str]) -> None:
        bench = Bench(quiet=True)
        bench.workers = []
        bench.after(3, WAITING)

        captured = capsys.readouterr()
        assert "no worker" in captured.err
        assert captured.out == ""

    def test_a_redis_that_is_away_is_left_to_who_waits(self) -> None:
        def away() -> list[WorkerFacts]:
            raise RedisUnavailableError("away")

        clock = Clock()
        shown = JobProgress(away, monotonic=clock)
        clock.now += 10
        with pytest.raises(RedisUnavailableError):
            shown.update(WAITING)


class TestReasons:
    def test_somebody_serves_the_model(self) -> None:
        assert missing_worker_words(WAITING, [worker("x:y"), worker("demo", "a:b")]) is None

    def test_nobody_is_there(self) -> None:
        line = missing_worker_words(WAITING, [])
        assert line is not None
        for words in ("clipfleet-worker run --models demo", "CLIPFLEET_REDIS_URL", "clipfleet-worker up"):
            assert words in line

    def test_nobody_serves_the_model(self) -> None:
        line = missing_worker_words(WAITING, [worker("x:y"), worker("a:b", "x:y")])
        assert line is not None
        assert "no connected worker serves demo (they serve: a:b, x:y)" in line
        assert "clipfleet-worker run --models demo" in line

    def test_workers_that_serve_nothing_now(self) -> None:
        assert "they serve: nothing" in (missing_worker_words(WAITING, [worker()]) or "")

    @pytest.mark.parametrize(
        ("reason", "words"), [("", "is paused:"), ("disk full", "is paused (disk full):")]
    )
    def test_a_paused_job_comes_first(self, reason: str, words: str) -> None:
        line = missing_worker_words(make_status(state=JobState.PAUSED, reason=reason), [])
        assert line is not None
        assert words in line
        assert f"clipfleet resume {JOB_ID}" in line

    def test_what_looks_like_markup_is_printed_as_it_is(self, capsys: pytest.CaptureFixture[str]) -> None:
        bench = Bench()
        bench.after(5, make_status(state=JobState.PAUSED, reason="[red]x[/blue] :smile:"))

        assert "([red]x[/blue] :smile:)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (200, "3 min 20 s"), (3600, "1 h"), (7500, "2 h 5 min"),
        (86_400, "1 d"), (273_700, "3 d 4 h"),
    ],
)  # fmt: skip
def test_durations(seconds: float, words: str) -> None:
    assert duration_words(seconds) == words


@pytest.mark.parametrize(
    ("rate", "words"), [(1234.4, "1,234"), (10, "10"), (7.46, "7.5"), (0.031, "0.031"), (0, "0")]
)
def test_rates(rate: float, words: str) -> None:
    assert rate_words(rate) == words
