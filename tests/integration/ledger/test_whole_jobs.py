"""A small job that is added with all of its items in one step."""

from __future__ import annotations

import pytest
import redis

from clipfleet.contract.jobs import JobState
from clipfleet.errors import JobConflictError, QuotaExceededError
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import Ledger, Quota, Retention
from clipfleet.ledger.row_store import RedisStore, WholeItems
from tests.support.ledger import claim, ends
from tests.support.redis_rows import redis_job

ITEMS = WholeItems("_clipfleet/items-00000000-2.staged", b"items", chunks=2, items=8)
MINUTE = Retention(60, 60)
NO_QUOTA = Quota(0, 0)


def test_it_is_sealed_and_claimable_at_once(
    ledger: Ledger, store: RedisStore, redis_client: redis.Redis
) -> None:
    store.submit_whole(redis_job(), ITEMS, MINUTE, NO_QUOTA)
    store.submit_whole(redis_job(), ITEMS, MINUTE, NO_QUOTA)

    status = ledger.status("job")
    assert (status.state, status.sealed, status.total, status.chunks) == (JobState.RUNNING, True, 8, 2)
    assert redis_client.hget(keys.job("job", keys.ITEMS), ITEMS.name) == "items"
    assert ledger.staged_files("job") == [(0, 2)]
    claimed = [claim(ledger), claim(ledger)]
    assert [(one.chunk_id, one.first_chunk, one.chunks) for one in claimed] == [(0, 0, 2), (1, 0, 2)]
    assert ledger.claim("another", 60, [redis_job().lane], [redis_job().model]) is None


def test_its_end_is_told(ledger: Ledger, store: RedisStore, redis_client: redis.Redis) -> None:
    last = ledger.last_end()
    store.submit_whole(redis_job(), ITEMS, MINUTE, NO_QUOTA)
    assert ledger.wait_for_ends(last, 0.01) == (last, [])

    ledger.cancel("job", ttl_seconds=60)

    last, ended = ledger.wait_for_ends(last, 5)
    assert ended == ["job"]
    assert ledger.wait_for_ends(last, 0.01) == (last, [])
    assert len(ends(redis_client)) == 1
    assert all(0 < redis_client.pttl(name) <= 60_000 for name in redis_client.scan_iter("clipfleet:{job}*"))


def test_another_job_of_this_id_is_refused(store: RedisStore, ledger: Ledger) -> None:
    store.submit_whole(redis_job(), ITEMS, MINUTE, NO_QUOTA)

    with pytest.raises(JobConflictError, match="differs in: chunk_size"):
        store.submit_whole(redis_job(chunk_items=7), ITEMS, MINUTE, NO_QUOTA)


def test_a_quota_admits_all_of_it_or_nothing(
    store: RedisStore, ledger: Ledger, redis_client: redis.Redis
) -> None:
    with pytest.raises(QuotaExceededError, match="8 items would wait"):
        store.submit_whole(redis_job(), ITEMS, MINUTE, Quota(7, 0))
    assert ledger.jobs() == []
    assert [*redis_client.scan_iter("clipfleet:{job}*")] == []

    store.submit_whole(redis_job(), ITEMS, MINUTE, Quota(8, 0))
    assert ledger.status("job").total == 8
