"""Leases by the clock of the server, while many reconcile, and after Redis was unavailable."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from clipfleet.contract.jobs import Lane
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import Ledger, WorkerFacts
from tests.support.ledger import add_job, claim, let_leases_expire, let_time_pass, new_token, server_now_ms
from tests.support.waiting import wait_until


def test_leases_expire_by_the_clock_of_the_server(ledger: Ledger) -> None:
    add_job(ledger, chunks=2)
    claim(ledger)
    assert ledger.claim(new_token(), 0.1, list(Lane), ["demo"])

    wait_until(lambda: ledger.reconcile() == (1, 0), "a lease has run out", seconds=5)

    assert ledger.reconcile() == (0, 0)


def test_reconcilers_count_each_loss_once(ledger: Ledger, redis_url: str, redis_client: redis.Redis) -> None:
    add_job(ledger, chunks=50)
    for _ in range(40):
        claim(ledger)
    let_leases_expire(redis_client)

    def reconcile_often(_: int) -> int:
        own = Ledger(redis_url)
        try:
            return sum(own.reconcile()[0] for _ in range(5))
        finally:
            own.close()

    with ThreadPoolExecutor(8) as workers:
        assert sum(workers.map(reconcile_often, range(8))) == 40

    again = [claim(ledger) for _ in range(50)]
    assert sorted(claimed.chunk_id for claimed in again) == list(range(50))
    assert sorted(claimed.losses for claimed in again) == [0] * 10 + [1] * 40


def let_redis_be_away(ledger: Ledger, client: redis.Redis, seconds: float) -> None:
    """No worker has reached it since the last reconcile: every mark is older by this time."""
    ledger.reconcile()
    let_time_pass(client, seconds)
    client.decrby(keys.RECONCILED, int(seconds * 1000))


@pytest.mark.parametrize("seconds", [20, 600, 86_400])
def test_an_outage_of_redis_ends_no_lease(ledger: Ledger, redis_client: redis.Redis, seconds: float) -> None:
    add_job(ledger, chunks=2)
    ledger.heartbeat(WorkerFacts("w", "host", 7, ("demo",)))
    assert ledger.claim(new_token(), 12, list(Lane), ["demo"])
    assert ledger.claim(new_token(), 30, list(Lane), ["demo"])

    let_redis_be_away(ledger, redis_client, seconds)

    assert ledger.reconcile(lease_seconds=30) == (0, 0)
    now_ms = server_now_ms(redis_client)
    left = [
        round((mark - now_ms) / 1000) for _, mark in redis_client.zrange(keys.LEASES, 0, -1, withscores=True)
    ]
    assert left == pytest.approx([12, 30], abs=2)
    assert [facts.worker_id for facts in ledger.workers()] == ["w"]


def test_after_an_outage_leases_expire_as_before(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger, chunks=2)
    claim(ledger)
    let_redis_be_away(ledger, redis_client, 600)
    assert ledger.reconcile() == (0, 0)

    let_leases_expire(redis_client)

    assert ledger.reconcile() == (1, 0)


def test_a_short_gap_does_not_extend_leases(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger)
    assert ledger.claim(new_token(), 10, list(Lane), ["demo"])

    let_redis_be_away(ledger, redis_client, 14)

    assert ledger.reconcile(lease_seconds=30) == (1, 0)


def test_leases_expire_also_if_reconciles_are_rare(ledger: Ledger, redis_client: redis.Redis) -> None:
    """One worker is left, and CLIPFLEET_RECONCILE_SECONDS is long for CLIPFLEET_LEASE_SECONDS."""
    add_job(ledger)
    assert ledger.claim(new_token(), 10, list(Lane), ["demo"])

    lost = []
    for _ in range(3):
        let_redis_be_away(ledger, redis_client, 6)
        lost.append(ledger.reconcile(lease_seconds=10, period_seconds=5)[0])

    assert lost == [0, 1, 0]


def test_a_lease_that_expired_before_the_outage_is_lost(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger)
    claim(ledger)
    let_redis_be_away(ledger, redis_client, 600)
    let_leases_expire(redis_client)

    assert ledger.reconcile() == (1, 0)


def test_leases_of_a_missing_job_are_removed(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger)
    claim(ledger)
    let_leases_expire(redis_client)
    redis_client.delete(*redis_client.keys(keys.job("job", "*")))

    assert ledger.reconcile() == (0, 0)

    assert redis_client.exists(keys.LEASES, keys.job("job", keys.DUE)) == 0
