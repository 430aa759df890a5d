"""Quotas of what waits in the ledger: enforced by the scripts, reported in one line; nothing is lost."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from clipfleet.client import Client, JobOptions
from clipfleet.contract.jobs import JobState
from clipfleet.errors import QuotaExceededError, UsageError
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import Ledger, Quota
from clipfleet.ledger.row_store import RedisStore
from clipfleet.redis.connection import connect
from clipfleet.settings import Settings
from clipfleet_worker.sinks.redis import RedisSink
from tests.support import redis_rows
from tests.support.ledger import add_job, claim, complete, make_job, work_off


@pytest.fixture
def bounded(redis_url: str, ledger: Ledger) -> Iterator[Ledger]:
    """Takes 100 items."""
    bounded = Ledger(redis_url, quota=Quota(items=100))
    yield bounded
    bounded.close()


def client_of(redis_url: str, **quota: int) -> Client:
    return Client(Settings(redis_url=redis_url, **quota))  # type: ignore[arg-type]


class TestItems:
    def test_up_to_the_quota(self, bounded: Ledger) -> None:
        add_job(bounded, "one", chunks=5)
        add_job(bounded, "two", chunks=5)

        with pytest.raises(QuotaExceededError, match="CLIPFLEET_QUOTA_ITEMS allows 100") as caught:
            bounded.submit(make_job("three"))

        assert isinstance(caught.value, UsageError)
        assert [status.job_id for status in bounded.jobs()] == ["two", "one"]

    def test_what_is_done_counts_no_more(self, bounded: Ledger) -> None:
        add_job(bounded, "one", chunks=10)
        complete(bounded, claim(bounded), ok=7, failed=3)

        add_job(bounded, "two", chunks=1)
        with pytest.raises(QuotaExceededError):
            bounded.submit(make_job("three"))

    @pytest.mark.parametrize("end", ["done", "cancelled"])
    def test_ended_jobs_count_no_more(self, bounded: Ledger, end: str) -> None:
        add_job(bounded, "one", chunks=10)
        if end == "done":
            work_off(bounded)
        else:
            bounded.cancel("one", ttl_seconds=60)

        add_job(bounded, "two", chunks=10)

    def test_what_is_repeated_needs_no_room(self, bounded: Ledger) -> None:
        job = add_job(bounded, "one", chunks=10)

        assert bounded.submit(job) == (False, JobState.RUNNING)
        assert bounded.stage("one", 0, 10, 100) == "known"

    def test_a_producer_without_a_quota_is_not_limited(self, bounded: Ledger, ledger: Ledger) -> None:
        add_job(ledger, "one", chunks=20)
        add_job(ledger, "two", chunks=20)

        with pytest.raises(QuotaExceededError):
            bounded.submit(make_job("three"))


class TestSubmit:
    def test_a_larger_one_comes_in_pieces(self, redis_url: str, ledger: Ledger, tmp_path: Path) -> None:
        urls = [f"https://example.org/{number}.jpg" for number in range(90)]
        options = JobOptions(output=tmp_path / "out", model="demo", chunk_size=10, job_id="long")
        totals = []
        with client_of(redis_url, quota_items=40) as client:
            for _ in range(2):
                with pytest.raises(QuotaExceededError, match="submit again with job id long to resume"):
                    client.embed(urls, options=options)
                totals.append(ledger.status("long").total)
                work_off(ledger)
            client.embed(urls, options=options)

        assert totals == [40, 80]
        assert ledger.status("long").sealed


class TestBytes:
    def test_items_in_redis_count(self, redis_url: str, redis_client: redis.Redis, ledger: Ledger) -> None:
        images = [random.Random(number).randbytes(60_000) for number in range(3)]
        options = JobOptions(model="demo", job_id="second")
        with (
            client_of(redis_url, quota_bytes=100_000) as client,
            connect(redis_url, decode=False) as raw_client,
        ):
            first = client.embed(images[:1], options=JobOptions(model="demo"))
            with pytest.raises(QuotaExceededError, match="CLIPFLEET_QUOTA_BYTES allows 100,000"):
                client.embed(images[1:2], options=options)
            assert redis_client.exists(keys.job("second", keys.ITEMS)) == 0  # else it would wait for itself

            claimed, sink = claim(ledger), RedisSink(RedisStore(redis_url, client=raw_client))
            redis_rows.complete(ledger, claimed, redis_rows.bring(sink, claimed, redis_rows.chunk_rows(0, 1)))
            assert first.status().state is JobState.COMPLETED
            second = client.embed(images[1:2], options=options)

            assert second.status().sealed
