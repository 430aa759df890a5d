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
            working.note_progress()
        clock.now += 10
        assert not waiting.is_within_limit

    def test_but_not_for_ever(self, held: HeldLease, clock: Clock) -> None:
        held.enter("encode", 10, 100)
        for _ in range(11):
            clock.now += 9
            held.note_progress()
        assert held.is_within_limit
        clock.now += 1
        held.note_progress()
        assert not held.is_within_limit

    def test_other_steps_gain_no_time_by_the_progress_of_others(self, clock: Clock) -> None:
        progress = Progress(clock)
        writing, other = HeldLease(LEASE, clock, progress), HeldLease(LEASE, clock, progress)
        writing.enter("write", 10)
        clock.now += 10
        other.note_progress()
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
    @pytest.fixture
    def ledger(self) -> RecordingLedger:
        return RecordingLedger()

    @pytest.fixture
    def keeper(self, ledger: RecordingLedger, clock: Clock) -> LeaseKeeper:
        return LeaseKeeper(ledger, LEASE_SECONDS, WRITE_LIMIT_SECONDS, clock=clock)

    @pytest.fixture
    def confirming(self, keeper: LeaseKeeper, clock: Clock) -> Iterator[HeldLease]:
        with keeper.hold(LEASE, asked_at=clock.now) as held:
            yield held

    def test_within_the_lease_the_ledger_is_not_asked(
        self, confirming: HeldLease, keeper: LeaseKeeper, ledger: RecordingLedger, clock: Clock
    ) -> None:
        for renewals in (0, 1):
            clock.now += LEASE_SECONDS - 0.1
            confirming.confirm()
            assert len(ledger.renewed) == renewals
            keeper.renew_all()

    def test_a_worker_that_was_frozen_renews_once_and_goes_on_if_the_chunk_is_still_its(
        self, confirming: HeldLease, ledger: RecordingLedger, clock: Clock
    ) -> None:
        clock.now += LEASE_SECONDS
        confirming.confirm()
        confirming.confirm()
        assert ledger.renewed == [["1"]]

    @pytest.mark.parametrize("word", ["lost", "cancelled"])
    def test_else_it_writes_nothing(
        self, confirming: HeldLease, ledger: RecordingLedger, clock: Clock, word: str
    ) -> None:
        ledger.words["1"] = word
        clock.now += LEASE_SECONDS
        with pytest.raises(ChunkInterrupted, match=word):
            confirming.confirm()

    def test_an_interrupted_chunk_is_not_written_within_its_lease_either(self, held: HeldLease) -> None:
        held.interrupt("cancelled")
        with pytest.raises(ChunkInterrupted, match="cancelled"):
            held.confirm()

    def test_while_redis_is_away_it_waits_without_a_limit(
        self, confirming: HeldLease, keeper: LeaseKeeper, ledger: RecordingLedger, clock: Clock
    ) -> None:
        limits: list[float | None] = []
        ledger.replies["renew"] = [RedisUnavailableError("away")]
        ledger.before["renew"] = lambda: limits.extend(phase.limit_seconds for phase in keeper.phases())
        confirming.enter("write", 300)
        clock.now += LEASE_SECONDS
        confirming.confirm()
        (phase,) = keeper.phases()
        assert limits == [None, None]
        assert (phase.name, phase.limit_seconds) == ("write", WRITE_LIMIT_SECONDS + 60)
