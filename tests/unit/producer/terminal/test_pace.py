"""Rate, time left and limit, from snapshots at times that a test chooses."""

from __future__ import annotations

from typing import Any

import pytest

from clipfleet.contract.bottleneck import Meters
from clipfleet.contract.jobs import JobState
from clipfleet.ledger.jobs import JobStatus
from clipfleet.terminal.pace import Pace
from tests.support.jobs import make_status

TOTAL = 100_000


def snapshot(ran: int, *, kept: int = 0, **values: Any) -> JobStatus:
    return make_status(**{"total": TOTAL, "ok": ran + kept, "ran": ran, **values})


class Watched:
    """A job that is looked at once a second."""

    def __init__(self, ran: int = 0, **values: Any) -> None:
        self.pace = Pace()
        self.now = 1000.0
        self.began = self.now
        self.ran = ran
        self.values = values
        self.look()

    def look(self) -> None:
        self.pace.note(self.now, snapshot(self.ran, **self.values))

    def goes_on(self, seconds: int, rows: int = 0, every: int = 1) -> None:
        """So many rows come at a time."""
        for _ in range(seconds):
            self.now += 1
            self.ran += rows if (self.now - self.began) % every == 0 else 0
            self.look()

    @property
    def rate(self) -> float | None:
        return self.pace.rows_per_second(self.now)

    @property
    def left(self) -> float | None:
        return self.pace.seconds_left(self.now)


@pytest.fixture
def job() -> Watched:
    return Watched()


def test_items_of_chunks_in_progress_count_like_rows() -> None:
    pace = Pace()
    for second, (ran, settled) in enumerate([(0, 0), (0, 40), (0, 90), (100, 20), (100, 80), (200, 0)]):
        pace.note(second, snapshot(ran, settled=settled, total=600))

    assert pace.rows_per_second(5) == pytest.approx(40)
    assert pace.seconds_left(5) == pytest.approx(10)


class TestRate:
    def test_nothing_is_known_before_rows_have_come_for_a_while(self, job: Watched) -> None:
        assert job.rate is None
        job.goes_on(2, rows=50)
        assert job.rate is None
        job.goes_on(1, rows=50)
        assert job.rate == 50

    def test_it_is_that_of_lately(self, job: Watched) -> None:
        job.goes_on(600, rows=100)
        job.goes_on(30, rows=10)
        assert 50 < (job.rate or 0) < 60
        job.goes_on(40, rows=10)
        assert job.rate == 10

    @pytest.mark.parametrize(("rows", "every"), [(512, 5), (512, 90), (4096, 300)])
    def test_rows_that_come_a_chunk_at_a_time(self, job: Watched, rows: int, every: int) -> None:
        job.goes_on(2 * every, rows, every)
        for _ in range(3 * every):
            job.goes_on(1, rows, every)
            assert job.rate == rows / every

    def test_several_chunks_at_a_time(self, job: Watched) -> None:
        for _ in range(12):
            job.goes_on(17)
            job.goes_on(3, rows=1000)
        assert job.rate == pytest.approx(150, rel=0.2)

    def test_who_comes_in_the_middle_of_a_chunk_waits_for_the_next(self) -> None:
        job = Watched(ran=5000)
        job.goes_on(5)
        job.goes_on(1, rows=500)
        assert job.rate is None
        job.goes_on(10, rows=500, every=16)
        assert job.rate == 50

    def test_rows_that_a_retry_has_kept_are_none_of_it(self) -> None:
        job = Watched(kept=90_000, generation=1)
        assert job.rate is None
        job.goes_on(10, rows=5)
        assert job.rate == 5

    def test_a_new_generation_begins_anew(self) -> None:
        job = Watched(ran=100)
        job.goes_on(20, rows=100)
        job.ran, job.values = 0, {"generation": 1, "kept": 2000}
        job.look()
        assert job.rate is None
        job.goes_on(4, rows=1)
        assert job.rate == 1


class TestTimeLeft:
    def test_it_goes_down_while_a_chunk_is_waited_for(self, job: Watched) -> None:
        job.goes_on(100, rows=1000, every=10)
        assert job.left == 900
        job.goes_on(7)
        assert job.left == 893

    def test_it_grows_when_one_is_late(self, job: Watched) -> None:
        job.goes_on(30, rows=1000, every=10)
        job.goes_on(20)
        assert (job.left or 0) > 970

    def test_of_a_retry_the_kept_rows_of_its_chunks_count(self) -> None:
        """Each chunk brings 10 new rows and 990 that were kept."""
        pace = Pace()
        for second in range(11):
            pace.note(second, snapshot(10 * second, kept=50_000 + 990 * second, generation=1))

        assert pace.rows_per_second(10) == 10
        assert pace.seconds_left(10) == 40

    @pytest.mark.parametrize(
        ("job", "rows", "left"),
        [
            ({}, 1000, 90),
            ({"sealed": False, "state": JobState.SUBMITTING}, 1000, None),
            ({"total": 1000}, 100, 0),
            ({"total": 10**12}, 1, None),  # years are no answer
        ],
        ids=["at the rate of lately", "while it is submitted", "all rows are there", "years"],
    )
    def test_after_ten_seconds(self, job: dict[str, Any], rows: int, left: float | None) -> None:
        watched = Watched(**job)
        watched.goes_on(10, rows=rows)
        assert (watched.rate, watched.left) == (rows, left)


class TestStandstill:
    def test_after_half_a_minute_nothing_is_known(self, job: Watched) -> None:
        job.goes_on(60, rows=10)
        job.goes_on(30)
        assert job.rate is not None
        job.goes_on(1)
        assert (job.rate, job.left) == (None, None)

    def test_large_chunks_take_their_time(self, job: Watched) -> None:
        job.goes_on(300, rows=512, every=100)
        job.goes_on(400)
        assert job.rate is not None
        job.goes_on(101)
        assert job.rate is None

    def test_it_counts_anew_from_its_end(self, job: Watched) -> None:
        job.goes_on(60, rows=10)
        job.goes_on(3600)
        job.goes_on(1, rows=10)
        assert job.rate is None
        job.goes_on(5, rows=10)
        assert job.rate == 10

    def test_a_pause_is_no_time(self, job: Watched) -> None:
        job.goes_on(60, rows=10)
        job.values = {"state": JobState.PAUSED}
        job.goes_on(20)
        assert (job.rate, job.left) == (None, None)
        job.values = {}
        job.goes_on(20, rows=0)
        job.goes_on(10, rows=10)
        assert job.rate == 10


def test_the_limit_is_that_of_lately_or_else_of_all() -> None:
    wrote = {"write": 1000.0, "fetch, decode, encode": 100.0}
    encoded = {"fetch, decode, encode": 200, "beyond": 50_000, "on cpu": 100, "forward busy": 99}
    at_first = snapshot(1000, meters=Meters(wrote))
    lately = snapshot(2000, meters=Meters(wrote | encoded))
    pace = Pace()
    pace.note(0, at_first)
    assert str(pace.limit(at_first)).startswith("write: ")

    pace.note(1, snapshot(1001, meters=Meters(wrote)))
    pace.note(2, lately)

    assert str(lately.limit).startswith("write: ")
    assert str(pace.limit(lately)).startswith("encode: ")


def test_no_limit_is_known_of_a_job_that_has_just_begun() -> None:
    pace = Pace()
    pace.note(0, snapshot(0))
    assert pace.limit(snapshot(0)) is None
