"""The backlog of all jobs together, with times that only keys can set, whatever was planted in its place."""

from __future__ import annotations

import pytest
import redis

from clipfleet.contract.jobs import Lane
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import Ledger
from clipfleet.ledger.values import LaneBacklog
from tests.support.ledger import DAY_MS, add_job, claim, server_now_ms, work_off


def test_the_backlog_is_counted_once_in_a_while(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger, chunks=3)
    before = ledger.backlog(600)
    work_off(ledger)

    assert ledger.backlog(600) == before
    redis_client.delete(keys.BACKLOG)  # that time passes
    assert ledger.backlog(600).lanes[Lane.NORMAL] == LaneBacklog()


def test_the_backlog_has_the_age_of_the_oldest_due_chunk(ledger: Ledger, redis_client: redis.Redis) -> None:
    def oldest() -> float:
        redis_client.delete(keys.BACKLOG)
        return ledger.backlog().oldest_due_seconds

    add_job(ledger, chunks=2)
    now_ms = server_now_ms(redis_client)
    redis_client.hset(keys.job("job"), "created_ms", now_ms - DAY_MS)
    assert oldest() == pytest.approx(86_400, abs=60)  # of a job that was never claimed

    first = claim(ledger)
    assert oldest() == 0
    ledger.release(first, "drain", reason="", first_back_off_seconds=3600)
    redis_client.zadd(keys.job("job", keys.DUE), {"0": now_ms + DAY_MS})
    assert oldest() == 0  # it is not due yet
    redis_client.zadd(keys.job("job", keys.DUE), {"0": now_ms - DAY_MS / 2})
    assert oldest() == pytest.approx(43_200, abs=60)


def test_the_backlog_has_the_longest_outage(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger, chunks=2)
    ledger.release(claim(ledger), "waits", reason="store away")
    redis_client.hset(keys.job("job"), "outage_since", server_now_ms(redis_client) - DAY_MS)

    assert ledger.backlog().outage_seconds == pytest.approx(86_400, abs=60)


@pytest.mark.parametrize("planted", ["", "[]", "{}", '{"lanes": 7}', "[" * 100_000, "no JSON", ["a", "list"]])
def test_a_plant_is_not_believed(ledger: Ledger, redis_client: redis.Redis, planted: str | list[str]) -> None:
    add_job(ledger, chunks=3)
    if isinstance(planted, list):
        redis_client.rpush(keys.BACKLOG, *planted)
    else:
        redis_client.set(keys.BACKLOG, planted)

    assert ledger.backlog().lanes[Lane.NORMAL].queued_chunks == 3


def test_planted_jobs_do_not_keep_others_uncounted(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger, chunks=3)
    redis_client.zadd(
        keys.JOBS, {"of another kind": 1, "without facts": 2, "odd": 3, "nowhere": 4, "bytes": 5}
    )
    redis_client.set(keys.job("of another kind"), "a string", ex=60)
    redis_client.hset(keys.job("without facts"), "state", "running")
    redis_client.expire(keys.job("without facts"), 60)
    redis_client.hset(keys.job("bytes"), mapping={"state": b"\xff", "lane": b"\xfe"})
    redis_client.expire(keys.job("bytes"), 60)
    redis_client.hset(keys.job("odd"), mapping={"state": "running", "lane": "no lane", "staged_chunks": "x"})
    redis_client.expire(keys.job("odd"), 60)
    redis_client.set(keys.job("odd", keys.DUE), "a string", ex=60)

    assert ledger.backlog().lanes[Lane.NORMAL].queued_chunks == 3
