"""One lease: the limits of its steps, its interruption, and whether it is certainly ours before a write."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from clipfleet.errors import RedisUnavailableError
from clipfleet.ledger.jobs import Lease
from clipfleet_worker.chunk.held_lease import HeldLease, Progress
from clipfleet_worker.chunk.leases import LeaseKeeper
from clipfleet_worker.failures import ChunkInterrupted
from tests.support.doubles import Clock, InThread
from tests.support.recording_ledger import RecordingLedger

LEASE_SECONDS = 30.0
WRITE_LIMIT_SECONDS = 7.0
LEASE = Lease("job", "1", "token")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def held(clock: Clock) -> HeldLease:
    return HeldLease(LEASE, clock)


class TestSteps:
    def test_each_step_has_a_limit_of_its_own(self, held: HeldLease, clock: Clock) -> None:
        for step in ("read", "write"):
            held.enter(step, 10)
            assert held.step == step
            clock.now += 9.9
            assert held.is_within_limit
            clock.now += 0.1
            assert not held.is_within_limit

    def test_a_claimed_chunk_has_a_limit_before_its_first_step(self, held: HeldLease, clock: Clock) -> None:
        assert held.is_within_limit
        clock.now += 3600
        assert not held.is_within_limit

    def test_a_step_behind_others_may_go_on_while_the_worker_makes_progress(self, clock: Clock) -> None:
        """On a slow device a chunk queues: its limit counts from the worker's last progress."""
        progress = Progress(clock)
        waiting, working = HeldLease(LEASE, clock, progress), HeldLease(LEASE, clock, progress)
        waiting.enter("encode", 10, 100)
        working.enter("encode", 10, 100)
        for _ in range(5):
            clock.now += 9
            assert waiting.is_within_limit
            working.note_settled(1)
        clock.now += 10
        assert not waiting.is_within_limit

    def test_but_not_for_ever(self, held: HeldLease, clock: Clock) -> None:
        held.enter("encode", 10, 100)
        for _ in range(11):
            clock.now += 9
            held.note_settled(1)
        assert held.is_within_limit
        clock.now += 1
        held.note_settled(1)
        assert not held.is_within_limit

    def test_other_steps_gain_no_time_by_the_progress_of_others(self, clock: Clock) -> None:
        progress = Progress(clock)
        writing, other = HeldLease(LEASE, clock, progress), HeldLease(LEASE, clock, progress)
        writing.enter("write", 10)
        clock.now += 10
        other.note_settled(1)
        assert not writing.is_within_limit


class TestInterruption:
    def test_it_ends_the_next_step_before_it_begins(self, held: HeldLease) -> None:
        held.interrupt("lost")

        with pytest.raises(ChunkInterrupted, match="lost"):
            held.enter("write", 10)

    @pytest.mark.parametrize("is_late", [False, True])
    def test_it_calls_back_once(self, held: HeldLease, is_late: bool) -> None:
        seen = list[BaseException]()
        steps = [lambda: held.interrupt("lost"), lambda: held.on_interrupt(seen.append)]
        for step in steps if is_late else reversed(steps):
            step()
        held.interrupt("the worker drains")

        assert [str(error) for error in seen] == ["lost"]

    @pytest.mark.parametrize("is_late", [False, True])
    def test_it_ends_the_wait_for_another_thread(self, held: HeldLease, is_late: bool) -> None:
        loading = Future[str]()
        if is_late:
            held.interrupt("the worker drains")
        call = InThread(lambda: held.result_of(loading))
        held.interrupt("the worker drains")
        with pytest.raises(ChunkInterrupted, match="the worker drains"):
            call.result()
        loading.set_result("model")  # the loading itself went on, and disturbs nobody

    def test_its_callbacks_go_with_the_lease_not_only_by_the_collector(self) -> None:
        """A chunk's outcomes hold its vectors, and its lease, which calls them back."""

        class Waiting:
            def __init__(self, held: HeldLease) -> None:
                self.held = held

            def interrupt(self, error: BaseException) -> None:
                raise AssertionError("nobody interrupts")

        gc.disable()
        try:
            with LeaseKeeper(RecordingLedger(), LEASE_SECONDS).hold(LEASE) as held:
                waiting = Waiting(held)
                held.on_interrupt(waiting.interrupt)
                seen = weakref.ref(waiting)
            del waiting, held
            assert seen() is None
        finally:
            gc.enable()


class TestWaitingForAnotherThread:
    def test_the_result_or_the_error_comes_back(self, held: HeldLease) -> None:
        loading = Future[str]()
        call = InThread(lambda: held.result_of(loading))
        loading.set_result("model")
        assert call.result() == "model"
        failed = Future[str]()
        failed.set_exception(MemoryError("none left"))
        with pytest.raises(MemoryError, match="none left"):
            held.result_of(failed)

    def test_one_that_takes_too_long_releases_the_chunk(self, held: HeldLease) -> None:
        """A download may take hours: that is no hang, and no reason to end the process in its middle."""
        held.enter("load model", 60)

        with pytest.raises(ChunkInterrupted, match=r"load model takes more than 0.01 s"):
            held.result_of(Future(), 0.01)


class TestConfirming:
    @pytest.fixture(autouse=True)
    def _hold(self, clock: Clock) -> Iterator[None]:
        self.ledger, self.clock = RecordingLedger(), clock
        self.keeper = LeaseKeeper(self.ledger, LEASE_SECONDS, WRITE_LIMIT_SECONDS, clock=clock)
        with self.keeper.hold(LEASE, asked_at=clock.now) as self.held:
            yield

    def confirm_after(self, seconds: float) -> None:
        self.clock.now += seconds
        self.held.confirm()

    def test_within_the_lease_the_ledger_is_not_asked(self) -> None:
        for renewals in (0, 1):
            self.confirm_after(LEASE_SECONDS - 0.1)
            assert len(self.ledger.renewed) == renewals
            self.keeper.renew_all()

    def test_a_worker_that_was_frozen_renews_once_and_goes_on_if_the_chunk_is_still_its(self) -> None:
        self.confirm_after(LEASE_SECONDS)
        self.confirm_after(0)
        assert self.ledger.renewed == [["1"]]

    @pytest.mark.parametrize("word", ["lost", "cancelled"])
    def test_else_it_writes_nothing(self, word: str) -> None:
        self.ledger.words["1"] = word
        with pytest.raises(ChunkInterrupted, match=word):
            self.confirm_after(LEASE_SECONDS)

    def test_an_interrupted_chunk_is_not_written_within_its_lease_either(self) -> None:
        self.held.interrupt("cancelled")
        with pytest.raises(ChunkInterrupted, match="cancelled"):
            self.confirm_after(0)

    def test_while_redis_is_away_it_waits_without_a_limit(self) -> None:
        limits: list[float | None] = []
        self.ledger.replies["renew"] = [RedisUnavailableError("away")]
        self.ledger.before["renew"] = lambda: limits.extend(one.limit_seconds for one in self.keeper.phases())
        self.held.enter("write", 300)
        self.confirm_after(LEASE_SECONDS)
        (phase,) = self.keeper.phases()
        assert limits == [None, None]
        assert (phase.name, phase.limit_seconds) == ("write", WRITE_LIMIT_SECONDS + 60)
