"""What people are told while a job runs: a bar or a line now and then, and why nobody works."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
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


SERVES = worker("demo")
Said = Callable[[], list[str]]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """Lines on stderr since the last look; stdout is for programs."""

    def said() -> list[str]:
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err.splitlines()

    return said


class Bench:
    """A progress display with a clock, and the workers it sees."""

    def __init__(self, *workers: WorkerFacts, **options: Any) -> None:
        self.clock = Clock()
        self.asked = 0
        self.workers = workers
        self.progress = JobProgress(self._workers, monotonic=self.clock, **options)

    def _workers(self) -> Sequence[WorkerFacts]:
        self.asked += 1
        return self.workers

    def after(self, seconds: float, status: JobStatus) -> None:
        self.clock.now += seconds
        self.progress.update(status)


@pytest.fixture
def bench() -> Bench:
    return Bench()


class TestLines:
    def test_one_every_ten_seconds_with_rate_and_time_left(self, bench: Bench, said: Said) -> None:
        with bench.progress:
            for ran in range(0, 4100, 100):
                bench.after(0.5, make_status(leased_chunks=1, total=4500, ok=ran, ran=ran))

        assert said() == [
            f"{JOB_ID} running: 1,900 of 4,500, 0 failed, 200/s, 13 s left",
            f"{JOB_ID} running: 3,900 of 4,500, 0 failed, 200/s, 3 s left",
        ]

    def test_what_is_not_known_is_a_question_mark(self, said: Said) -> None:
        Bench().after(10, make_status(state=JobState.SUBMITTING, sealed=False, leased_chunks=1))
        Bench(SERVES).after(10, make_status(state=JobState.FINISHING, ok=100))

        assert said() == [
            f"{JOB_ID} submitting: 0 of 100 so far, 0 failed, ?/s, ? left",
            f"{JOB_ID} finishing: 100 of 100, 0 failed",
        ]

    def test_the_commonest_errors_and_the_limit(self, said: Said) -> None:
        codes = {"timeout": 3, "not_found": 40, "empty": 1, "tls_failed": 2}
        Bench().after(10, make_status(leased_chunks=1, ok=54, failed=46, codes=codes, ran=100, meters=WRITES))

        (line,) = said()
        assert "46 failed (40 not_found, 3 timeout, 2 tls_failed), " in line
        assert line.endswith(" left; write: writing parts takes 90 % of the chunks' time")

    def test_items_of_chunks_in_progress_count_and_none_is_taken_back(self, bench: Bench, said: Said) -> None:
        begun = make_status(leased_chunks=2, total=300)
        for ok, settled in ((0, 7), (0, 25), (16, 20), (16, 0), (16, 15), (32, 8)):  # a chunk was lost
            bench.after(10, replace(begun, ok=ok, settled=settled))
        bench.after(10, replace(begun, ok=280, failed=20, state=JobState.CANCELLED))
        bench.after(10, replace(begun, ok=280, settled=1, generation=1))

        counts = [line.split(": ")[1].split(" of ")[0] for line in said()]
        assert counts == ["7", "25", "36", "36", "36", "40", "300", "281"]

    @pytest.mark.parametrize(
        ("doing", "words"),
        [
            ({"downloading 210 of 605 MB": 1, "claimed": 3}, "downloading 210 of 605 MB"),
            ({"loading ViT-B-32": 2, "downloading 1 of 2 MB": 1, "read": 1}, "loading ViT-B-32"),
            ({"encode labels": 1, "loading ViT-B-32": 1}, "loading ViT-B-32"),
            ({"encode labels": 2}, "encoding the labels"),
            ({"a\x1b[2J": 1}, "a\\x1b[2J"),
            ({"loading ViT-B-32": 5, "fetch, decode, encode": 1}, "?/s, ? left"),
            ({"loading ViT-B-32": 5, "complete": 1}, "?/s, ? left"),
            ({"claimed": 1, "read": 1}, "?/s, ? left"),
        ],
    )
    def test_what_all_chunks_wait_for(self, said: Said, doing: dict[str, int], words: str) -> None:
        Bench().after(10, make_status(leased_chunks=sum(doing.values()), doing=doing))

        assert said() == [f"{JOB_ID} running: 0 of 100, 0 failed, {words}"]

    def test_what_an_unreported_chunk_waits_for_is_unknown(self, said: Said) -> None:
        Bench().after(10, make_status(leased_chunks=3, doing={"loading ViT-B-32": 2}))

        assert said() == [f"{JOB_ID} running: 0 of 100, 0 failed, ?/s, ? left"]

    def test_quiet_is_quiet_as_long_as_somebody_works(self, said: Said) -> None:
        bench = Bench(quiet=True)
        with bench.progress:
            bench.after(100, WORKING)

        assert said() == []

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

    def test_a_terminal_gets_a_bar_in_place_of_lines(self, terminal: io.StringIO, bench: Bench) -> None:
        begun = make_status(leased_chunks=1, total=1000)
        with bench.progress:
            bench.after(1, begun)
            for ran in (100, 200, 300, 400, 500):
                failed = {"failed": 20, "codes": {"empty": 20}}
                bench.after(4, replace(begun, ok=ran - 20, ran=ran, meters=WRITES, **failed))

        shown = terminal.getvalue()
        assert "500/1000" in shown
        assert "25/s, 20 s left" in shown
        assert "20 failed (20 empty); write: writing parts takes 90 % of the chunks' time" in shown
        assert JOB_ID not in shown

    def test_what_others_have_named_moves_no_cursor(self, terminal: io.StringIO, bench: Bench) -> None:
        with bench.progress:
            bench.after(1, make_status(leased_chunks=1, failed=1, codes={"a\x1b[2Jb [red]c[/]": 1}))

        assert "1 failed (1 a\\x1b[2Jb [red]c[/])" in terminal.getvalue()

    def test_quiet_has_none(self, terminal: io.StringIO) -> None:
        bench = Bench(quiet=True)
        with bench.progress:
            bench.after(20, WORKING)

        assert terminal.getvalue() == ""

    def test_it_is_gone_whatever_ends_the_wait(self, terminal: io.StringIO, bench: Bench) -> None:
        with pytest.raises(KeyboardInterrupt), bench.progress:
            bench.after(1, make_status(total=0))
            raise KeyboardInterrupt

        assert terminal.getvalue().endswith("\x1b[?25h")  # the cursor is back


class TestComplaints:
    @pytest.mark.parametrize("quiet", [False, True])
    def test_a_worker_has_three_seconds_to_start(self, said: Said, quiet: bool) -> None:
        bench = Bench(quiet=quiet)

        bench.after(2.9, WAITING)
        assert said() == []
        bench.after(0.1, WAITING)
        assert "no worker is connected" in said()[0]

    def test_it_is_said_again_after_a_minute(self, said: Said) -> None:
        bench = Bench(quiet=True)
        for _ in range(125):
            bench.after(1, WAITING)

        assert len(said()) == 3  # at 3, 63 and 123 seconds

    @pytest.mark.parametrize(
        "status", [WORKING, *(make_status(state=state) for state in JobState if state.is_final)]
    )
    def test_where_somebody_works_or_all_is_over_nobody_asks(self, status: JobStatus) -> None:
        bench = Bench(quiet=True)
        bench.after(100, status)

        assert bench.asked == 0

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

    @pytest.mark.parametrize(
        ("workers", "words"),
        [
            ([], ["clipfleet-worker run --models demo", "CLIPFLEET_REDIS_URL", "clipfleet-worker up"]),
            ([worker()], ["they serve: nothing"]),
            (
                [worker("x:y"), worker("a:b", "x:y")],
                ["serves demo (they serve: a:b, x:y)", "--models demo"],
            ),
        ],
    )
    def test_nobody_serves_the_model(self, workers: list[WorkerFacts], words: list[str]) -> None:
        line = missing_worker_words(WAITING, workers) or ""
        assert [word for word in words if word not in line] == [], line

    @pytest.mark.parametrize(
        ("reason", "words"), [("", "is paused:"), ("disk full", "is paused (disk full):")]
    )
    def test_a_paused_job_comes_first(self, reason: str, words: str) -> None:
        line = missing_worker_words(make_status(state=JobState.PAUSED, reason=reason), []) or ""
        assert words in line
        assert f"clipfleet resume {JOB_ID}" in line

    def test_a_finish_that_has_failed_says_why(self) -> None:
        status = make_status(state=JobState.FINISHING, reason="ValueError: a bug")

        assert missing_worker_words(status, [worker("demo")]) == (
            f"job {JOB_ID} could not be finished yet, it is tried again: ValueError: a bug"
        )
        assert missing_worker_words(make_status(state=JobState.FINISHING), [worker("demo")]) is None

    def test_what_looks_like_markup_is_printed_as_it_is(self, said: Said) -> None:
        Bench().after(5, make_status(state=JobState.PAUSED, reason="[red]x[/blue] :smile:"))

        assert "([red]x[/blue] :smile:)" in said()[0]


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
