"""Leases in our hands: renewed while their step may run, interrupted when they are lost."""

from __future__ import annotations

import gc
import logging
import math
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from clipfleet.errors import RedisUnavailableError
from clipfleet.ledger.answers import RenewAnswer
from clipfleet.ledger.jobs import Lease
from clipfleet_worker.chunk.leases import HeldLease, LeaseKeeper, Progress
from clipfleet_worker.failures import ChunkInterrupted
from clipfleet_worker.process.watchdog import Phase, RunningTime
from tests.support.doubles import Clock, InThread
from tests.support.ledger_replies import RepliesLedger

LEASE_SECONDS = 30.0
WRITE_LIMIT_SECONDS = 7.0


class FakeLedger(RepliesLedger):
    """Holds every lease, or answers by the words it was given, by chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.words: dict[str, str] = {}

    def renew(self, leases: Sequence[Lease], lease_seconds: float) -> list[RenewAnswer]:
        assert lease_seconds == LEASE_SECONDS
        return [RenewAnswer(self.words.get(lease.chunk, "held")) for lease in leases]

    def is_away(self, is_away: bool = True) -> None:
        """Redis is away from now on, or back."""
        calls = ("renew", "last_early_end")
        self.replies = dict.fromkeys(calls, RedisUnavailableError("away")) if is_away else {}

    @property
    def renewed(self) -> list[list[str]]:
        """The chunks of each call."""
        return [[lease.chunk for lease in leases] for leases, _ in self.named("renew")]


@pytest.fixture
def ledger() -> FakeLedger:
    return FakeLedger()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keeper(ledger: FakeLedger, clock: Clock) -> LeaseKeeper:
    return LeaseKeeper(ledger, LEASE_SECONDS, WRITE_LIMIT_SECONDS, clock=clock)


def lease(chunk: int) -> Lease:
    return Lease("job", str(chunk), f"token-{chunk}")


def test_a_pause_of_the_process_is_no_hang(ledger: FakeLedger) -> None:
    clock = Clock()
    keeper = LeaseKeeper(ledger, LEASE_SECONDS, running_time=RunningTime(clock))
    with keeper.hold(lease(0)) as held:
        held.enter("read", 10)
        clock.now += 200  # paused

        keeper.renew_all()

        assert ledger.renewed == [["0"]]
        assert keeper.hanging() == []
        clock.now += 10
        assert [phase.name for phase in keeper.hanging()] == ["read"]


class TestHeldLease:
    def test_a_stage_has_a_limit(self) -> None:
        clock = Clock()
        held = HeldLease(lease(0), clock)
        held.enter("write", 10)
        assert held.step == "write"

        clock.now += 9.9
        assert held.is_within_limit
        clock.now += 0.1
        assert not held.is_within_limit

    def test_the_next_stage_starts_the_clock_anew(self) -> None:
        clock = Clock()
        held = HeldLease(lease(0), clock)
        held.enter("read", 10)
        clock.now += 20
        held.enter("write", 10)

        assert held.is_within_limit

    def test_a_claimed_chunk_has_a_limit_before_its_first_stage(self) -> None:
        clock = Clock()
        held = HeldLease(lease(0), clock)
        assert held.is_within_limit
        clock.now += 3600
        assert not held.is_within_limit

    def test_an_interruption_ends_the_next_stage_before_it_begins(self) -> None:
        held = HeldLease(lease(0))
        held.interrupt("lost")

        with pytest.raises(ChunkInterrupted, match="lost"):
            held.enter("write", 10)

    def test_who_waits_is_told_once(self) -> None:
        held, told = HeldLease(lease(0)), list[BaseException]()
        held.on_interrupt(told.append)
        held.interrupt("lost")
        held.interrupt("the worker leaves")

        assert [str(error) for error in told] == ["lost"]

    def test_who_comes_late_is_told_at_once(self) -> None:
        held, told = HeldLease(lease(0)), list[BaseException]()
        held.interrupt("cancelled")
        held.on_interrupt(told.append)

        assert [str(error) for error in told] == ["cancelled"]


class TestAStageBehindOthers:
    """On a slow device a chunk waits for its turn: the limit counts from the worker's last progress."""

    def test_it_may_go_on_while_the_worker_gets_on(self) -> None:
        clock = Clock()
        progress = Progress(clock)
        waiting, working = HeldLease(lease(0), clock, progress), HeldLease(lease(1), clock, progress)
        waiting.enter("encode", 10, 100)
        working.enter("encode", 10, 100)
        for _ in range(5):
            clock.now += 9
            assert waiting.is_within_limit
            working.note_progress()
        clock.now += 10
        assert not waiting.is_within_limit

    def test_but_not_for_ever(self) -> None:
        clock = Clock()
        held = HeldLease(lease(0), clock)
        held.enter("encode", 10, 100)
        for _ in range(11):
            clock.now += 9
            held.note_progress()
        assert held.is_within_limit
        clock.now += 1
        held.note_progress()
        assert not held.is_within_limit

    def test_another_stage_is_not_helped_by_what_others_do(self) -> None:
        clock = Clock()
        progress = Progress(clock)
        writing, other = HeldLease(lease(0), clock, progress), HeldLease(lease(1), clock, progress)
        writing.enter("write", 10)
        clock.now += 10
        other.note_progress()
        assert not writing.is_within_limit


class TestWaitingForOthers:
    def test_the_result_or_the_error_comes_back(self) -> None:
        loading: Future[str] = Future()
        call = InThread(lambda: HeldLease(lease(0)).result_of(loading))
        loading.set_result("model")
        assert call.result() == "model"
        failed: Future[str] = Future()
        failed.set_exception(MemoryError("none left"))
        with pytest.raises(MemoryError, match="none left"):
            HeldLease(lease(0)).result_of(failed)

    @pytest.mark.parametrize("is_late", [False, True])
    def test_whoever_is_interrupted_waits_no_longer(self, is_late: bool) -> None:
        held, loading = HeldLease(lease(0)), Future[str]()
        if is_late:
            held.interrupt("the worker leaves")
        call = InThread(lambda: held.result_of(loading))
        held.interrupt("the worker leaves")
        with pytest.raises(ChunkInterrupted, match="the worker leaves"):
            call.result()
        loading.set_result("model")  # the loading itself went on, and disturbs nobody

    def test_a_stage_that_waits_for_others_too_long_gives_the_chunk_back(self) -> None:
        """A download may take hours: that is no hang, and no reason to end the process in its middle."""
        held = HeldLease(lease(0))
        held.enter("load model", 60)

        with pytest.raises(ChunkInterrupted, match=r"load model takes more than 0.01 s"):
            held.result_of(Future(), 0.01)


class TestConfirming:
    """Whether the lease is certainly ours, immediately before a write that others can see."""

    def test_within_the_lease_nobody_is_asked(
        self, keeper: LeaseKeeper, ledger: FakeLedger, clock: Clock
    ) -> None:
        with keeper.hold(lease(1), asked_at=clock.now) as held:
            clock.now += LEASE_SECONDS - 0.1
            held.confirm()
            keeper.renew_all()
            clock.now += LEASE_SECONDS - 0.1
            held.confirm()
        assert len(ledger.renewed) == 1

    def test_a_worker_that_was_frozen_asks_and_goes_on_if_nobody_took_the_chunk(
        self, keeper: LeaseKeeper, ledger: FakeLedger, clock: Clock
    ) -> None:
        with keeper.hold(lease(1), asked_at=clock.now) as held:
            clock.now += LEASE_SECONDS
            held.confirm()
            held.confirm()
        assert ledger.renewed == [["1"]]

    @pytest.mark.parametrize("word", ["lost", "cancelled"])
    def test_else_it_writes_nothing(
        self, keeper: LeaseKeeper, ledger: FakeLedger, clock: Clock, word: str
    ) -> None:
        ledger.words = {"1": word}
        with keeper.hold(lease(1), asked_at=clock.now) as held:
            clock.now += LEASE_SECONDS
            with pytest.raises(ChunkInterrupted, match=word):
                held.confirm()

    def test_an_interrupted_chunk_is_not_written_within_its_lease_either(
        self, keeper: LeaseKeeper, clock: Clock
    ) -> None:
        with keeper.hold(lease(1), asked_at=clock.now) as held:
            held.interrupt("cancelled")
            with pytest.raises(ChunkInterrupted, match="cancelled"):
                held.confirm()

    def test_a_redis_that_is_away_is_waited_for_without_a_limit(
        self, keeper: LeaseKeeper, ledger: FakeLedger, clock: Clock
    ) -> None:
        ledger.is_away()
        phases: list[Phase] = []

        def back() -> None:
            phases.extend(keeper.phases())
            ledger.is_away(len(ledger.renewed) < 2)

        ledger.before["renew"] = back
        with keeper.hold(lease(1), asked_at=clock.now) as held:
            held.enter("write", 300)
            clock.now += LEASE_SECONDS
            held.confirm()
            (phase,) = keeper.phases()
        assert [one.limit_seconds for one in phases] == [None, None]
        assert (phase.name, phase.limit_seconds) == ("write", WRITE_LIMIT_SECONDS + 60)


class TestPhases:
    def test_the_watchdog_sees_each_stage_until_well_after_its_lease_was_left(
        self, keeper: LeaseKeeper
    ) -> None:
        with keeper.hold(lease(1)) as first, keeper.hold(lease(2)) as second:
            first.enter("write", 300)
            second.enter("complete", math.inf)
            one, other = keeper.phases()
        assert (one.loop, one.name, one.limit_seconds) == ("chunk 1 of job job", "write", 360)
        assert (other.name, other.is_idle) == ("complete", True)
        assert keeper.phases() == []


class TestRenewing:
    def test_one_call_renews_all_that_are_held(self, keeper: LeaseKeeper, ledger: FakeLedger) -> None:
        with keeper.hold(lease(1)):
            with keeper.hold(lease(2)):
                keeper.renew_all()
            keeper.renew_all()
        keeper.renew_all()

        assert ledger.renewed == [["1", "2"], ["1"], []]

    @pytest.mark.parametrize("word", ["lost", "cancelled"])
    def test_a_lost_chunk_is_interrupted_with_the_word(
        self, keeper: LeaseKeeper, ledger: FakeLedger, word: str
    ) -> None:
        ledger.words["2"] = word
        with keeper.hold(lease(1)) as mine, keeper.hold(lease(2)) as lost:
            keeper.renew_all()

            mine.enter("write", 10)
            with pytest.raises(ChunkInterrupted, match=word):
                lost.enter("write", 10)

    @pytest.mark.parametrize("word", ["held", "paused"])
    def test_a_chunk_of_a_paused_job_goes_on(
        self, keeper: LeaseKeeper, ledger: FakeLedger, word: str
    ) -> None:
        ledger.words["1"] = word
        with keeper.hold(lease(1)) as held:
            keeper.renew_all()
            held.enter("write", 10)

    def test_a_redis_that_is_away_changes_nothing(self, keeper: LeaseKeeper, ledger: FakeLedger) -> None:
        with keeper.hold(lease(1)) as held:
            ledger.is_away()
            keeper.renew_all()
            held.enter("encode", 10)

            # When it is back, it says what happened meanwhile.
            ledger.is_away(False)
            ledger.words["1"] = "lost"
            keeper.renew_all()
            with pytest.raises(ChunkInterrupted):
                held.enter("write", 10)

    def test_a_stage_beyond_its_limit_is_not_renewed(
        self, keeper: LeaseKeeper, ledger: FakeLedger, caplog: pytest.LogCaptureFixture
    ) -> None:
        with keeper.hold(lease(1)) as hanging, keeper.hold(lease(2)) as fine:
            hanging.enter("decode", 0)
            fine.enter("decode", 1000)

            with caplog.at_level(logging.ERROR):
                keeper.renew_all()

        assert ledger.renewed == [["2"]]
        assert "step decode of chunk 1 hangs" in caplog.text

    def test_a_finished_chunk_has_no_limit_and_is_not_interrupted(
        self, keeper: LeaseKeeper, ledger: FakeLedger
    ) -> None:
        with keeper.hold(lease(1)) as held:
            held.enter("write", 0)
            keeper.interrupt_all("the worker leaves")
            held.enter_complete()
            keeper.renew_all()

        assert ledger.renewed == [["1"]]

    def test_a_lease_is_let_go_whatever_happens_in_the_context(
        self, keeper: LeaseKeeper, ledger: FakeLedger
    ) -> None:
        with pytest.raises(SystemExit), keeper.hold(lease(1)):
            raise SystemExit
        keeper.renew_all()

        assert ledger.renewed == [[]]

    def test_what_waited_is_let_go_with_it_not_only_by_the_collector(self, keeper: LeaseKeeper) -> None:
        """A chunk's outcomes hold its vectors, and its lease, which tells them of an interruption."""

        class Waiting:
            def __init__(self, held: HeldLease) -> None:
                self.held = held

            def interrupt(self, error: BaseException) -> None:
                raise AssertionError("nobody interrupts")

        gc.disable()
        try:
            with keeper.hold(lease(0)) as held:
                waiting = Waiting(held)
                held.on_interrupt(waiting.interrupt)
                seen = weakref.ref(waiting)
            del waiting, held
            assert seen() is None
        finally:
            gc.enable()


class TestLeaving:
    def test_all_that_is_held_is_interrupted(self, keeper: LeaseKeeper) -> None:
        told: list[str] = []
        with keeper.hold(lease(1)) as first, keeper.hold(lease(2)) as second:
            for held in (first, second):
                held.on_interrupt(lambda error: told.append(str(error)))
            keeper.interrupt_all("the worker leaves")

        assert told == ["the worker leaves"] * 2

    def test_a_claim_that_was_answered_late_is_interrupted_too(self, keeper: LeaseKeeper) -> None:
        # Given a worker whose time to drain is over, when the answer to a claim still comes in
        keeper.interrupt_all("the worker leaves")

        with keeper.hold(lease(1)) as held, pytest.raises(ChunkInterrupted, match="the worker leaves"):
            held.enter("read", 10)


class TestThread:
    @pytest.fixture
    def times(
        self, keeper: LeaseKeeper, ledger: FakeLedger, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[[float], list[float]]:
        """Runs the thread's loop for so many seconds, and tells when it asked for a renewal."""

        def run(seconds: float) -> list[float]:
            began, asked = clock.now, list[float]()

            def renewed() -> None:
                asked.append(clock.now - began)

            def wait(pause_seconds: float) -> bool:
                clock.now += pause_seconds
                return clock.now - began >= seconds

            ledger.before["renew"] = renewed
            monkeypatch.setattr(keeper, "_stopping", SimpleNamespace(wait=wait))
            keeper._run()
            return asked

        return run

    def test_it_renews_each_third_of_a_lease(
        self, keeper: LeaseKeeper, times: Callable[[float], list[float]]
    ) -> None:
        with keeper.hold(lease(1)):
            times(5)  # its first look at what was cancelled
            assert times(35) == [LEASE_SECONDS / 3, 2 * LEASE_SECONDS / 3, LEASE_SECONDS]

    def test_a_redis_that_is_away_is_asked_often(
        self, ledger: FakeLedger, times: Callable[[float], list[float]]
    ) -> None:
        ledger.is_away()
        assert times(13.5) == [10, 11, 12, 13]

    def test_a_cancel_is_seen_within_a_second(
        self, keeper: LeaseKeeper, ledger: FakeLedger, times: Callable[[float], list[float]]
    ) -> None:
        with keeper.hold(lease(1)) as held:
            times(5)
            ledger.replies["last_early_end"], ledger.words = "job:1764540000000", {"1": "cancelled"}
            assert times(5) == [1, 2]  # once more for a chunk that was claimed right before
            with pytest.raises(ChunkInterrupted, match="cancelled"):
                held.enter("write", 10)

    def test_it_ends_when_told(self, keeper: LeaseKeeper) -> None:
        keeper.start()
        keeper.stop()
        assert not keeper._thread.is_alive()

    def test_it_can_be_stopped_without_having_been_started(self, keeper: LeaseKeeper) -> None:
        keeper.stop()
