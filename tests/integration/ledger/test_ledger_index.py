"""The index of all jobs, which is walked bit by bit, and times that outlive a change of the clock."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import redis

from clipfleet.contract.jobs import Lane
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import Ledger, Quota
from clipfleet.ledger.values import WorkerFacts
from tests.support import ledger as steps
from tests.support.ledger import LANES, MODEL, add_job, claim, make_job, new_token, server_now_ms, work_off

JUMP_MS = 600_000


def add_expired(client: redis.Redis, count: int, created_ms: int) -> None:
    """Jobs of which nothing but the entry in the index is left."""
    client.zadd(keys.JOBS, {f"expired-{number}": created_ms + number for number in range(count)})


def add_paused(ledger: Ledger, client: redis.Redis, count: int) -> None:
    """Jobs that live on at the head of the index."""
    for number in range(count):
        add_job(ledger, f"paused-{number}")
        ledger.pause(f"paused-{number}", "")
    client.zadd(keys.JOBS, {f"paused-{number}": number for number in range(count)})


class TestIndex:
    def test_expired_jobs_behind_live_ones_are_gone(self, ledger: Ledger, redis_client: redis.Redis) -> None:
        add_paused(ledger, redis_client, 100)
        add_expired(redis_client, 2_000, created_ms=1_000)

        for _ in range(50):
            ledger.reconcile()

        assert redis_client.zcard(keys.JOBS) == 100

    def test_expired_jobs_hide_none_that_lives(self, ledger: Ledger, redis_client: redis.Redis) -> None:
        add_paused(ledger, redis_client, 30)
        add_expired(redis_client, 2_500, created_ms=1_000)

        newest = [status.job_id for status in ledger.jobs(20)]

        assert newest == [f"paused-{number}" for number in range(29, 9, -1)]
        assert len(ledger.jobs(1_000)) == 30

    def test_expired_jobs_hide_no_backlog(self, ledger: Ledger, redis_client: redis.Redis) -> None:
        add_job(ledger, chunks=3)
        redis_client.zadd(keys.JOBS, {"job": 1})
        add_expired(redis_client, 6_000, created_ms=1_000)

        backlog = ledger.backlog()

        assert (backlog.lanes[Lane.NORMAL].queued_chunks, backlog.jobs_left_out) == (3, 0)

    @pytest.mark.parametrize("kind", ["expired", "ended"])
    def test_a_quota_costs_nothing_for_jobs_that_are_over(
        self, redis_url: str, ledger: Ledger, redis_client: redis.Redis, kind: str
    ) -> None:
        bounded = Ledger(redis_url, quota=Quota(items=1_000))
        if kind == "expired":
            add_expired(redis_client, 300, created_ms=1_000)
        for number in range(300 if kind == "ended" else 0):
            add_job(ledger, f"ended-{number}", chunks=0, sealed=False)
            ledger.cancel(f"ended-{number}", ttl_seconds=60)
        ledger.submit(make_job("job"))

        before = _calls(redis_client)
        bounded.stage("job", 0, 1, 10)

        assert _calls(redis_client) - before < 10
        bounded.close()

    def test_an_entry_that_is_lost_comes_back(self, ledger: Ledger, redis_client: redis.Redis) -> None:
        add_job(ledger, "waits")
        add_job(ledger, "held", lane=Lane.BULK)
        claim(ledger, lanes=[Lane.BULK])
        queues = [keys.lane_queue(lane, MODEL) for lane in LANES]
        redis_client.delete(keys.LEASES, keys.COUNTED, *queues)

        ledger.reconcile()
        steps.let_leases_expire(redis_client)

        assert ledger.reconcile() == (1, 0)
        assert sorted(done.job_id for done in work_off(ledger)) == ["held", "waits"]


def _calls(client: redis.Redis) -> int:
    return int(client.info("commandstats").get("cmdstat_hmget", {"calls": 0})["calls"])


class TestClock:
    """The server's clock was put back: what it has set before lies in the future by as much."""

    @pytest.fixture(autouse=True)
    def _reconciled(self, ledger: Ledger) -> Iterator[None]:
        ledger.reconcile()
        yield

    def put_clock_back(self, client: redis.Redis) -> None:
        steps.let_time_pass(client, -JUMP_MS / 1000)
        client.incrby(keys.RECONCILED, JUMP_MS)

    def left_seconds(self, client: redis.Redis, key: str) -> list[int]:
        now_ms = server_now_ms(client)
        return [round((mark - now_ms) / 1000) for _, mark in client.zrange(key, 0, -1, withscores=True)]

    def test_a_lease_keeps_its_remaining_time(self, ledger: Ledger, redis_client: redis.Redis) -> None:
        add_job(ledger, chunks=2)
        for lease_seconds in (30, 300):
            assert ledger.claim(new_token(), lease_seconds, LANES, [MODEL])
        self.put_clock_back(redis_client)

        assert ledger.reconcile(lease_seconds=30) == (0, 0)

        assert self.left_seconds(redis_client, keys.LEASES) == pytest.approx([30, 300], abs=5)

    def test_a_lease_that_was_renewed_is_not_cut(self, ledger: Ledger, redis_client: redis.Redis) -> None:
        add_job(ledger)
        self.put_clock_back(redis_client)
        assert ledger.claim(new_token(), 30, LANES, [MODEL])

        assert ledger.reconcile(lease_seconds=30) == (0, 0)

        assert self.left_seconds(redis_client, keys.LEASES) == pytest.approx([30], abs=5)

    def test_nothing_waits_longer_than_it_had_to(self, ledger: Ledger, redis_client: redis.Redis) -> None:
        add_job(ledger, "due")
        ledger.release(claim(ledger), "failures", reason="", first_back_off_seconds=20)
        add_job(ledger, "finishing")
        work_off(ledger)
        assert ledger.claim_finish(new_token(), 30)
        ledger.submit(make_job("ended").model_copy(update={"on_finished": "myapp.handle"}))
        ledger.cancel("ended", ttl_seconds=60)
        self.put_clock_back(redis_client)

        ledger.reconcile(lease_seconds=30)

        assert self.left_seconds(redis_client, keys.job("due", keys.DUE)) == pytest.approx([20], abs=5)
        for key in (keys.FINISHING, keys.SWEEPS, keys.ANNOUNCEMENTS):
            assert max(self.left_seconds(redis_client, key)) <= 35, key

    def test_an_overwrite_waits_no_longer(self, ledger: Ledger, redis_client: redis.Redis) -> None:
        add_job(ledger, "ended", chunks=2)
        for lease_seconds in (30, 300):
            assert ledger.claim(new_token(), lease_seconds, LANES, [MODEL])
        ledger.cancel("ended", ttl_seconds=600)
        self.put_clock_back(redis_client)

        ledger.reconcile(lease_seconds=30)

        assert self.left_seconds(redis_client, keys.job("ended", keys.WRITERS)) == pytest.approx(
            [30, 300], abs=5
        )

    def test_a_dead_worker_is_listed_no_longer(self, ledger: Ledger, redis_client: redis.Redis) -> None:
        ledger.heartbeat(WorkerFacts("w", "host", 7, (MODEL,)))
        self.put_clock_back(redis_client)

        ledger.reconcile()

        assert self.left_seconds(redis_client, keys.WORKERS) == pytest.approx([0], abs=5)

    def test_the_backlog_is_counted_anew(self, ledger: Ledger, redis_client: redis.Redis) -> None:
        ledger.backlog(keep_seconds=JUMP_MS / 1000)
        add_job(ledger, chunks=3)
        self.put_clock_back(redis_client)

        ledger.reconcile()

        assert ledger.backlog().lanes[Lane.NORMAL].queued_chunks == 3


def test_a_lease_of_another_worker_may_be_longer(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger)
    claim(ledger)
    before = redis_client.zrange(keys.LEASES, 0, -1, withscores=True)

    for _ in range(3):
        ledger.reconcile(lease_seconds=1)

    assert redis_client.zrange(keys.LEASES, 0, -1, withscores=True) == before


@pytest.mark.parametrize("mark", [math.inf, 1e300])
def test_no_lease_or_back_off_lasts_for_ever(ledger: Ledger, redis_client: redis.Redis, mark: float) -> None:
    add_job(ledger, "leased")
    claim(ledger)
    add_job(ledger, "due")
    ledger.release(claim(ledger), "drain", reason="")
    redis_client.zadd(keys.LEASES, {"leased:0": mark})
    redis_client.zadd(keys.job("due", keys.DUE), {"0": mark})

    ledger.reconcile(lease_seconds=30)

    latest = server_now_ms(redis_client) + 300_000
    assert redis_client.zscore(keys.LEASES, "leased:0") <= latest
    assert redis_client.zscore(keys.job("due", keys.DUE), "0") <= latest
    assert steps.try_claim(ledger) is None
