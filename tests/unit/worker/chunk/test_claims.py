"""When a worker takes a chunk, when it waits, and when it looks for work without a hint."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from clipfleet.contract.jobs import Lane
from clipfleet.errors import RedisUnavailableError
from clipfleet_worker.chunk import claims as claims_module
from clipfleet_worker.chunk.claims import Claims
from clipfleet_worker.chunk.endings import ShunnedJobs
from clipfleet_worker.chunk.held_chunk import HeldChunk
from clipfleet_worker.chunk.open_items import OpenItems
from clipfleet_worker.models.cache import Models
from tests.support.doubles import PATIENCE_SECONDS, Clock, InThread, WatchedCondition
from tests.support.jobs import make_claim
from tests.support.recording_ledger import RecordingLedger

SLOTS = 3
CHUNK = make_claim(chunk_size=30)


class Bench:
    """Claims of a worker with three slots and room for a hundred items."""

    def __init__(self) -> None:
        self.ledger = RecordingLedger()
        self.ledger.before["claim"] = self._note_lanes
        self.items = OpenItems(100)
        self.clock = Clock()
        self.asked_for_high = threading.Event()
        self.shunned_jobs = ShunnedJobs()
        models = cast(Models, SimpleNamespace(served=lambda: ("demo",)))
        self.claims = Claims(
            ledger=self.ledger, open_items=self.items, models=models,
            shunned_jobs=self.shunned_jobs, lease_seconds=30, slots=SLOTS, monotonic=self.clock,
        )  # fmt: skip

    def _note_lanes(self) -> None:
        if self.ledger.named("claim")[-1][2] == (Lane.HIGH,):
            self.asked_for_high.set()

    def take(self, lane: Lane = Lane.NORMAL) -> HeldChunk:
        self.ledger.offer(CHUNK, lane)
        held = self.claims.take()
        assert held is not None
        assert held.claim == CHUNK
        return held

    def waiting_take(self) -> InThread:
        """A hint in a worker with room for the lane `high` only, which has nothing."""
        self.items.add(95)
        call = InThread(self.claims.take)
        assert self.asked_for_high.wait(PATIENCE_SECONDS)
        return call


@pytest.fixture
def bench() -> Bench:
    return Bench()


class TestTaking:
    def test_a_chunk_counts_as_open_until_it_is_done_with(self, bench: Bench) -> None:
        held = bench.take(Lane.BULK)
        bench.clock.now += 7

        assert (bench.items.count, bench.claims.held()) == (30, [held])
        assert bench.claims.oldest_held_seconds == 7
        bench.claims.done_with(held)
        assert (bench.items.count, bench.claims.held()) == (0, [])
        assert bench.claims.oldest_held_seconds == 0

    def test_it_asks_for_the_models_served_and_for_no_job_that_is_shunned(self, bench: Bench) -> None:
        bench.shunned_jobs.wait("other")

        bench.take()

        assert bench.ledger.named("claim")[-1][1:] == (30, tuple(Lane), ("demo",), ["other"])

    def test_a_hint_dies_where_no_work_is_due(self, bench: Bench) -> None:
        assert bench.claims.take() is None
        assert bench.items.count == 0

    def test_a_full_worker_claims_once_there_is_room(self, bench: Bench) -> None:
        bench.ledger.offer(CHUNK)
        bench.items.add(90)
        bench.items.add(10, from_reserve=True)
        bench.items._changed = changed = WatchedCondition()
        call = InThread(bench.claims.take)
        assert changed.somebody_waits.wait(PATIENCE_SECONDS)
        assert bench.ledger.named("claim") == []

        bench.items.remove(90)

        assert call.result().claim == CHUNK

    @pytest.mark.parametrize("lane", [Lane.NORMAL, Lane.HIGH])
    def test_a_hint_waits_where_the_room_that_is_left_is_for_high(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, lane: Lane
    ) -> None:
        """Until there is room, or that lane has a chunk."""
        if lane is Lane.HIGH:
            monkeypatch.setattr(claims_module, "_LOOK_FOR_HIGH_SECONDS", 0.01)
        call = bench.waiting_take()
        bench.ledger.offer(CHUNK)
        assert not call.is_done

        if lane is Lane.HIGH:
            bench.ledger.offer(CHUNK, Lane.HIGH)
        else:
            bench.items.remove(50)

        assert call.result().claim == CHUNK

    def test_another_hint_has_the_ledger_asked_at_once(self, bench: Bench, monkeypatch: Any) -> None:
        monkeypatch.setattr(claims_module, "_LOOK_FOR_HIGH_SECONDS", 10 * PATIENCE_SECONDS)
        first = bench.waiting_take()

        bench.ledger.offer(CHUNK, Lane.HIGH)
        second = InThread(bench.claims.take)

        assert first.result().claim == CHUNK
        bench.claims.drain()
        assert second.result() is None

    def test_a_chunk_from_the_room_for_high_frees_it_at_its_end(self, bench: Bench) -> None:
        bench.items.add(95)
        for _ in range(3):
            held = bench.take(Lane.HIGH)
            assert bench.items.wait_for_room(timeout_seconds=0) == ()
            bench.claims.done_with(held)
        assert bench.items.wait_for_room(timeout_seconds=0) == (Lane.HIGH,)

    def test_a_claim_without_an_answer_is_repeated_with_its_token(self, bench: Bench) -> None:
        """It may have been granted: with another token the chunk would be lost."""
        bench.ledger.goes_away("claim")
        for _ in range(2):
            with pytest.raises(RedisUnavailableError):
                bench.claims.take()
        del bench.ledger.replies["claim"]
        bench.take()
        bench.claims.take()

        first, second, third, fourth = (token for token, *_ in bench.ledger.named("claim"))
        assert first == second == third != fourth


class TestIdleSlots:
    """Each pull starts one more chain of hints, so it must not happen while hints are waiting anywhere."""

    def test_an_idle_worker_has_one_after_a_while(self, bench: Bench) -> None:
        assert not bench.claims.has_idle_slot(2)
        bench.clock.now += 2
        assert bench.claims.has_idle_slot(2)

    def test_a_worker_with_a_chunk_in_every_slot_has_none_however_long_they_take(self, bench: Bench) -> None:
        held = [bench.take() for _ in range(SLOTS - 1)]
        bench.clock.now += 2
        assert bench.claims.has_idle_slot(2)
        held.append(bench.take())
        bench.items.remove(60)
        bench.clock.now += 1000
        assert not bench.claims.has_idle_slot(2)

        bench.claims.done_with(held[0])

        assert not bench.claims.has_idle_slot(2), "a hint may be on its way to the slot that became free"
        bench.clock.now += 2
        assert bench.claims.has_idle_slot(2)

    def test_claims_in_vain_do_not_use_up_slots(self, bench: Bench) -> None:
        for _ in range(SLOTS):
            assert bench.claims.take() is None
        bench.ledger.goes_away("claim")
        for _ in range(SLOTS):
            with pytest.raises(RedisUnavailableError):
                bench.claims.take()
        bench.clock.now += 2

        assert bench.claims.has_idle_slot(2)

    @pytest.mark.parametrize("count", [90, 100])
    def test_a_worker_without_room_for_every_lane_has_none(self, bench: Bench, count: int) -> None:
        bench.items.add(count)
        bench.clock.now += 2

        assert not bench.claims.has_idle_slot(2)

    def test_a_worker_with_a_waiting_hint_has_none_and_drains_at_once(self, bench: Bench) -> None:
        call = bench.waiting_take()
        bench.clock.now += 2

        assert not bench.claims.has_idle_slot(2)

        bench.claims.drain()
        assert call.result() is None
