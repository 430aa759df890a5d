"""Leases are renewed while their steps are within their limits, and interrupted when they are lost."""

from __future__ import annotations

import math
from typing import Any

import pytest

from clipfleet.ledger.jobs import FINISH, Lease, LeaseReport
from clipfleet_worker.chunk.leases import LeaseKeeper
from clipfleet_worker.failures import ChunkInterrupted
from clipfleet_worker.process.watchdog import RunningTime
from tests.support.doubles import Clock
from tests.support.recording_ledger import RecordingLedger

LEASE_SECONDS = 30.0


class Bench:
    def __init__(self) -> None:
        self.ledger, self.clock = RecordingLedger(), Clock()
        running = RunningTime(self.clock)
        self.keeper = LeaseKeeper(self.ledger, LEASE_SECONDS, clock=self.clock, running_time=running)

    def pass_seconds(self, seconds: int) -> None:
        """One pass each second."""
        self.renewals(seconds)

    def renewals(self, seconds: int) -> list[int]:
        """One pass each second; the times of the calls to the ledger."""
        times: list[int] = []
        for second in range(1, seconds + 1):
            self.clock.now += 1
            before = len(self.ledger.renewed)
            self.keeper.run_once()
            times += [second] * (len(self.ledger.renewed) - before)
        return times


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def keeper(bench: Bench) -> LeaseKeeper:
    return bench.keeper


@pytest.fixture
def ledger(bench: Bench) -> RecordingLedger:
    return bench.ledger


def lease(chunk: int) -> Lease:
    return Lease("job", str(chunk), f"token-{chunk}")


class TestRenewing:
    def test_one_call_renews_all_held_leases(self, keeper: LeaseKeeper, ledger: RecordingLedger) -> None:
        with keeper.hold(lease(1)):
            with keeper.hold(lease(2)):
                keeper.renew_all()
            keeper.renew_all()
        with pytest.raises(SystemExit), keeper.hold(lease(3)):
            raise SystemExit
        keeper.renew_all()

        assert ledger.renewed == [["1", "2"], ["1"], []]

    @pytest.mark.parametrize("word", ["lost", "cancelled"])
    def test_a_lost_chunk_is_interrupted_with_the_word(
        self, keeper: LeaseKeeper, ledger: RecordingLedger, word: str
    ) -> None:
        ledger.words = {"1": "paused", "2": word}
        with keeper.hold(lease(1)) as mine, keeper.hold(lease(2)) as lost, keeper.hold(lease(3)) as other:
            keeper.renew_all()

            for held in (mine, other):
                held.enter("write", 10)
            with pytest.raises(ChunkInterrupted, match=word):
                lost.enter("write", 10)

    def test_while_redis_is_away_none_is(self, keeper: LeaseKeeper, ledger: RecordingLedger) -> None:
        ledger.words["1"] = "lost"
        with keeper.hold(lease(1)) as held:
            ledger.goes_away("renew")
            keeper.renew_all()
            held.enter("encode", 10)

            ledger.replies.clear()
            keeper.renew_all()
            with pytest.raises(ChunkInterrupted):
                held.enter("write", 10)

    def test_a_step_beyond_its_limit_is_not_renewed(self, bench: Bench, caplog: Any) -> None:
        with bench.keeper.hold(lease(1)) as hanging, bench.keeper.hold(lease(2)) as fine:
            hanging.enter("decode", 0)
            fine.enter("decode", 1000)
            bench.keeper.renew_all()

        assert bench.ledger.renewed == [["2"]]
        assert "step decode of chunk 1 hangs" in caplog.text

    def test_a_pause_of_the_process_is_not_a_hang(self, bench: Bench) -> None:
        with bench.keeper.hold(lease(0)) as held:
            held.enter("read", 10)
            bench.clock.now += 200  # paused

            bench.keeper.renew_all()

            assert bench.ledger.renewed == [["0"]]
            assert bench.keeper.hanging() == []
            bench.clock.now += 10
            assert [phase.name for phase in bench.keeper.hanging()] == ["read"]

    def test_the_watchdog_sees_a_step_until_well_after_its_lease(self, keeper: LeaseKeeper) -> None:
        with keeper.hold(lease(1)) as first, keeper.hold(lease(2)) as second:
            first.enter("write", 300)
            second.enter("complete", math.inf)
            one, other = keeper.phases()
        assert (one.loop, one.name, one.limit_seconds) == ("chunk 1 of job job", "write", 360)
        assert (other.name, other.is_idle) == ("complete", True)
        assert keeper.phases() == []


class TestReporting:
    def test_each_second_one_call_reports_what_has_changed(self, bench: Bench) -> None:
        with bench.keeper.hold(lease(1)) as first, bench.keeper.hold(lease(2)) as second:
            with bench.keeper.hold(Lease("job", FINISH, "token")):
                bench.pass_seconds(2)
            first.enter("encode", 10)
            first.note_settled(3)
            second.enter("load", 100, doing=lambda: "downloading 210 of 605 MB")
            first.note_settled(1)
            bench.pass_seconds(2)
        bench.pass_seconds(2)

        assert bench.ledger.named("report") == [
            ([LeaseReport(lease(1), 0, "claimed"), LeaseReport(lease(2), 0, "claimed")], []),
            ([LeaseReport(lease(1), 4, "encode"), LeaseReport(lease(2), 0, "downloading 210 of 605 MB")], []),
            ([], [lease(1), lease(2)]),
        ]

    def test_what_redis_did_not_take_is_reported_again(self, bench: Bench) -> None:
        bench.ledger.goes_away("report")
        with bench.keeper.hold(lease(1)):
            bench.pass_seconds(2)
            bench.ledger.replies.clear()
            bench.pass_seconds(2)

        assert len(bench.ledger.named("report")) == 3

    def test_foreign_letters_are_replaced_and_long_words_cut(self, keeper: LeaseKeeper) -> None:
        with keeper.hold(lease(1)) as held:
            held.enter("load", 10, doing=lambda: "loading ./mod\u00e8les" + "x" * 1000)

            assert held.report.doing.startswith("loading ./mod?lesxxx")
            assert len(held.report.doing) == 200


class TestDraining:
    def test_all_that_is_held_is_interrupted(self, keeper: LeaseKeeper) -> None:
        seen: list[str] = []
        with keeper.hold(lease(1)) as first, keeper.hold(lease(2)) as second:
            for held in (first, second):
                held.on_interrupt(lambda error: seen.append(str(error)))
            keeper.interrupt_all("the worker drains")

        assert seen == ["the worker drains"] * 2

    def test_so_is_a_claim_whose_answer_came_late(self, keeper: LeaseKeeper) -> None:
        keeper.interrupt_all("the worker drains")

        with keeper.hold(lease(1)) as held, pytest.raises(ChunkInterrupted, match="the worker drains"):
            held.enter("read", 10)

    def test_but_no_chunk_whose_part_is_in_place(self, keeper: LeaseKeeper, ledger: RecordingLedger) -> None:
        with keeper.hold(lease(1)) as held:
            held.enter("write", 0)
            keeper.interrupt_all("the worker drains")
            held.enter_complete()
            keeper.renew_all()

        assert ledger.renewed == [["1"]]


class TestLoop:
    def test_it_renews_each_third_of_a_lease(self, bench: Bench) -> None:
        with bench.keeper.hold(lease(1)):
            assert bench.renewals(35) == [1, 2, 12, 22, 32]

    def test_while_redis_is_away_it_renews_often(self, bench: Bench) -> None:
        bench.ledger.goes_away("renew", "last_early_end")
        assert bench.renewals(13) == [10, 11, 12, 13]

    def test_a_cancel_is_seen_within_a_second(self, bench: Bench) -> None:
        with bench.keeper.hold(lease(1)) as held:
            bench.renewals(5)
            bench.ledger.replies["last_early_end"] = "job:1764540000000"
            bench.ledger.words["1"] = "cancelled"
            # Once more for a chunk that was claimed right before.
            assert bench.renewals(5) == [1, 2]
            with pytest.raises(ChunkInterrupted, match="cancelled"):
                held.enter("write", 10)
