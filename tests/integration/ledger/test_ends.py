"""One event for each end of a job, and how long things are kept."""

from __future__ import annotations

import pytest
import redis

from clipfleet.contract.jobs import JobState
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import Ledger, WorkerFacts
from tests.support import ledger as steps
from tests.support.ledger import DAY_MS, add_finishing_job, add_job, bring_into, claim, claim_finish, complete


@pytest.mark.parametrize("state", [state for state in JobState if state.is_final])
def test_each_end_is_one_event_and_entry(ledger: Ledger, redis_client: redis.Redis, state: JobState) -> None:
    bring_into(ledger, state)
    ledger.fail("job", "no disk", ttl_seconds=60)
    ledger.cancel("job", ttl_seconds=60)

    assert steps.ends(redis_client) == [("job", "0", state)]
    assert redis_client.xrevrange(keys.job("job", keys.STREAM), count=1)[0][1] == {"state": state}
    assert not redis_client.exists(keys.LEASES, keys.FINISHING, keys.lane_queue("normal", "demo"))


def test_every_key_has_a_ttl_at_every_step_of_a_job(ledger: Ledger, redis_client: redis.Redis) -> None:
    def check() -> None:
        assert steps.keys_without_ttl(redis_client) == []

    add_job(ledger, chunks=4, sealed=False)
    check()
    ledger.seal("job", 4, 40)
    done, lost, failed, waits = (claim(ledger) for _ in range(4))
    check()
    ledger.renew([steps.lease_of(done)], 60)
    check()
    ledger.release(failed, "failures", reason="")
    ledger.release(waits, "waits", reason="store away")
    check()
    steps.lose(ledger, redis_client, lost)
    check()
    complete(ledger, done, ok=9, failed=1)
    check()
    ledger.pause("job", "for a while")
    check()
    ledger.resume("job")
    steps.let_back_offs_pass(redis_client, "job")
    steps.work_off(ledger)
    check()
    ledger.postpone_finish(claim_finish(ledger), 0)
    check()
    ledger.heartbeat(WorkerFacts("w1", "host", 7, ("demo",)))
    ledger.finish(claim_finish(ledger), ttl_seconds=60)
    check()


def test_an_unfinished_job_is_kept_for_thirty_days(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger)

    assert redis_client.pttl(keys.job("job")) == pytest.approx(30 * DAY_MS, abs=60_000)


@pytest.mark.parametrize("end", ["completed_with_errors", "cancelled", "failed", "postponed for too long"])
def test_an_ended_job_is_kept_as_long_as_asked(ledger: Ledger, redis_client: redis.Redis, end: str) -> None:
    if end == "postponed for too long":
        add_finishing_job(ledger)
        for _ in range(2):
            ledger.postpone_finish(claim_finish(ledger), 0, "gone", ttl_seconds=60, is_lasting=True)
            steps.let_outage_grow_old(redis_client, "job")
    else:
        bring_into(ledger, JobState(end))  # for sixty seconds

    ledger.submit(steps.make_job())
    ledger.stage("job", 0, 1, 10)
    ledger.seal("job", 1, 10)

    names = redis_client.keys(keys.job("job", "*"))
    assert names
    assert all(0 < redis_client.pttl(name) <= 60_000 for name in names)


def age(client: redis.Redis) -> None:
    """29 days and 23 hours go by."""
    for name in client.keys(f"{keys.PREFIX}:*"):
        client.pexpire(name, DAY_MS // 24)


def old_keys(client: redis.Redis) -> list[str]:
    """Keys that end soon after `age`."""
    return sorted(name for name in client.keys(f"{keys.PREFIX}:*") if client.pttl(name) < DAY_MS)


@pytest.mark.parametrize("touch", ["claim", "stage", "seal", "pause", "complete", "release", "reconcile"])
def test_each_call_keeps_a_jobs_keys_alive(ledger: Ledger, redis_client: redis.Redis, touch: str) -> None:
    add_job(ledger, chunks=9, sealed=False)
    first, second, third, fourth = (claim(ledger) for _ in range(4))
    complete(ledger, first)
    ledger.release(second, "waits", reason="store away")
    age(redis_client)

    if touch == "reconcile":
        steps.let_leases_expire(redis_client, ("job", third.chunk_id))
    calls = {
        "claim": lambda: claim(ledger),
        "stage": lambda: ledger.stage("job", 9, 1, 10),
        "seal": lambda: ledger.seal("job", 9, 90),
        "pause": lambda: ledger.pause("job", "for a while"),
        "complete": lambda: complete(ledger, fourth),
        "release": lambda: ledger.release(fourth, "failures", reason=""),
        "reconcile": lambda: ledger.reconcile(),
    }
    calls[touch]()

    assert [name for name in old_keys(redis_client) if not name.startswith(keys.claim_token(""))] == []


def test_a_finishing_retried_for_weeks_keeps_its_job_alive(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_finishing_job(ledger)
    age(redis_client)

    claim_finish(ledger)

    assert not {keys.FINISHING, keys.job("job"), keys.job("job", keys.STAGED)} & set(old_keys(redis_client))
