"""When a worker takes a chunk, when it waits, and when it looks for work without a hint."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import pytest

from clipfleet.contract.jobs import Lane
from clipfleet.errors import RedisUnavailableError
from clipfleet.ledger.jobs import Claim
from clipfleet_worker.chunk import claims as claims_module
from clipfleet_worker.chunk.claims import Claims, ShunnedJobs
from clipfleet_worker.chunk.open_items import OpenItems
from clipfleet_worker.models.cache import Models
from tests.support.doubles import PATIENCE_SECONDS, Clock, InThread, WatchedCondition
from tests.support.jobs import make_job
from tests.support.ledger import add_job
from tests.support.ledger_replies import RepliesLedger

LIMIT = 100
SLOTS = 3
CHUNK_SIZE = 30


def is_chunk(claim: Claim | None) -> bool:
    return claim is not None and claim.chunk_size == CHUNK_SIZE


class Bench:
    """Claims of a worker with three slots and room for a hundred items."""

    def __init__(self) -> None:
        self.ledger = RepliesLedger()
        self.asked_for_high = threading.Event()
        self.ledger.before["claim"] = self._note
        self.items = OpenItems(LIMIT)
        self.clock = Clock()
        self.claims = Claims(
            ledger=self.ledger,
            open_items=self.items,
            models=cast(Models, SimpleNamespace(served=lambda: ("demo",))),
            worker_id="worker",
            lease_seconds=30,
            outage_seconds=3600,
            job_ttl_seconds=3600,
            slots=SLOTS,
            monotonic=self.clock,
        )

    def offer(self, lane: Lane, count: int = 1) -> None:
        job_id = f"job-{len(self.ledger.jobs())}"
        job = make_job("/out", job_id=job_id, lane=lane, chunk_size=CHUNK_SIZE)
        add_job(self.ledger, job=job, chunks=count)

    @property
    def asked(self) -> list[Sequence[Lane]]:
        """The lanes of each claim."""
        return [lanes for _, _, lanes, *_ in self.ledger.named("claim")]

    def _note(self) -> None:
        if self.asked[-1] == (Lane.HIGH,):
            self.asked_for_high.set()


@pytest.fixture
def bench() -> Bench:
    return Bench()


class TestTaking:
    def test_a_chunk_counts_as_open_until_it_is_done_with(self, bench: Bench) -> None:
        bench.offer(Lane.BULK)

        claim = bench.claims.take()

        assert claim is not None and is_chunk(claim)
        assert bench.items.count == 30
        bench.claims.done_with(claim)
        assert bench.items.count == 0

    def test_a_hint_dies_where_nothing_is_to_do(self, bench: Bench) -> None:
        assert bench.claims.take() is None
        assert bench.items.count == 0

    def test_a_full_worker_claims_once_there_is_room(self, bench: Bench) -> None:
        bench.offer(Lane.NORMAL)
        bench.items.add(90)
        bench.items.add(10, from_reserve=True)
        bench.items._changed = changed = WatchedCondition()
        call = InThread(bench.claims.take)
        assert changed.somebody_waits.wait(PATIENCE_SECONDS)
        assert bench.asked == []

        bench.items.remove(90)

        assert is_chunk(call.result())

    def test_a_hint_waits_where_the_room_that_is_left_is_kept_for_high(self, bench: Bench) -> None:
        bench.offer(Lane.NORMAL)
        bench.items.add(95)
        call = InThread(bench.claims.take)
        assert bench.asked_for_high.wait(PATIENCE_SECONDS)
        assert not call.is_done

        bench.items.remove(50)

        assert is_chunk(call.result())

    def test_who_waits_there_takes_what_comes_for_high(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(claims_module, "_LOOK_FOR_HIGH_SECONDS", 0.01)
        bench.items.add(95)
        call = InThread(bench.claims.take)
        assert bench.asked_for_high.wait(PATIENCE_SECONDS)

        bench.offer(Lane.HIGH)

        assert is_chunk(call.result())

    def test_a_hint_that_comes_meanwhile_has_the_ledger_asked_at_once(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(claims_module, "_LOOK_FOR_HIGH_SECONDS", 10 * PATIENCE_SECONDS)
        bench.items.add(95)
        first = InThread(bench.claims.take)
        assert bench.asked_for_high.wait(PATIENCE_SECONDS)

        bench.offer(Lane.HIGH)
        second = InThread(bench.claims.take)

        assert is_chunk(first.result())
        bench.claims.leave()
        assert second.result() is None

    def test_what_was_claimed_from_the_room_for_high_leaves_it_again(self, bench: Bench) -> None:
        bench.items.add(95)
        for _ in range(3):
            bench.offer(Lane.HIGH)
            claim = bench.claims.take()
            assert claim is not None and is_chunk(claim)
            assert bench.items.wait_for_room(timeout_seconds=0) == ()
            bench.claims.done_with(claim)
        assert bench.items.wait_for_room(timeout_seconds=0) == (Lane.HIGH,)

    def test_a_worker_that_leaves_does_not_wait(self, bench: Bench) -> None:
        bench.items.add(95)
        call = InThread(bench.claims.take)
        assert bench.asked_for_high.wait(PATIENCE_SECONDS)

        bench.claims.leave()

        assert call.result() is None


class TestUnanswered:
    """The claim may have been granted: the same question gets the chunk, any other one would have it lost."""

    def test_it_is_asked_again_until_there_is_an_answer(self, bench: Bench) -> None:
        bench.ledger.replies["claim"] = RedisUnavailableError("away")
        for _ in range(2):
            with pytest.raises(RedisUnavailableError):
                bench.claims.take()
        bench.ledger.replies.clear()
        bench.offer(Lane.NORMAL)
        assert is_chunk(bench.claims.take())
        bench.claims.take()

        first, second, third, fourth = (token for token, *_ in bench.ledger.named("claim"))
        assert first == second == third != fourth


class TestIdleSlots:
    """Each pull starts one more chain of hints, so it must not happen while hints are waiting anywhere."""

    def test_a_worker_that_does_nothing_has_one_after_a_while(self, bench: Bench) -> None:
        assert not bench.claims.has_idle_slot(2)
        bench.clock.now += 2
        assert bench.claims.has_idle_slot(2)

    def test_some_chunks_under_way_leave_one_free(self, bench: Bench) -> None:
        bench.offer(Lane.NORMAL, SLOTS - 1)
        for _ in range(SLOTS - 1):
            bench.claims.take()
        bench.clock.now += 2

        assert bench.claims.has_idle_slot(2)

    def test_a_worker_with_a_chunk_in_every_slot_has_none_however_long_they_take(self, bench: Bench) -> None:
        bench.offer(Lane.NORMAL, SLOTS)
        for _ in range(SLOTS):
            bench.claims.take()
        bench.items.remove(60)
        bench.clock.now += 1000
        assert not bench.claims.has_idle_slot(2)

        bench.claims.done_with(bench.claims.held()[0])

        assert not bench.claims.has_idle_slot(2), "a hint may be on its way to the slot that became free"
        bench.clock.now += 2
        assert bench.claims.has_idle_slot(2)

    def test_claims_in_vain_do_not_use_up_slots(self, bench: Bench) -> None:
        for _ in range(SLOTS):
            assert bench.claims.take() is None
        bench.ledger.replies["claim"] = RedisUnavailableError("away")
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

    def test_a_worker_with_a_hint_that_waits_for_its_turn_has_none(self, bench: Bench) -> None:
        bench.items.add(95)
        call = InThread(bench.claims.take)
        assert bench.asked_for_high.wait(PATIENCE_SECONDS)
        bench.clock.now += 2

        assert not bench.claims.has_idle_slot(2)

        bench.claims.leave()
        assert call.result() is None


class TestShunnedJobs:
    def test_a_job_that_waits_is_left_alone_longer_each_time_up_to_a_bound(self) -> None:
        clock = Clock()
        shunned = ShunnedJobs(clock)
        spans = []
        for _ in range(7):
            shunned.wait("job")
            shunned.wait("job")  # its other chunks fail at the same time: that is the same trouble
            began = clock.now
            while shunned.current():
                clock.now += 0.5
            spans.append(clock.now - began)

        assert spans == [1, 2, 4, 8, 15, 15, 15]

    def test_a_chunk_that_comes_through_starts_anew(self) -> None:
        clock = Clock()
        shunned = ShunnedJobs(clock)
        for _ in range(3):
            shunned.wait("job")
            clock.now += 60
        shunned.forget("job")
        shunned.wait("job")
        clock.now += 1

        assert shunned.current() == []
