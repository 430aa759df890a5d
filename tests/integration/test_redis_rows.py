"""Results in Redis with the real scripts: rows become visible once, a whole chunk at a time."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import redis

from clipfleet.contract.jobs import JobState
from clipfleet.errors import RedisUnavailableError, ResultsExpiredError
from clipfleet.hints import Hints
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import Claim, Lease, Ledger, Retention, WorkerFacts
from clipfleet.ledger.row_store import RedisStore
from clipfleet.outputs.redis import RedisOutput
from clipfleet.redis.connection import connect
from clipfleet.results.redis_rows import RedisRows
from clipfleet.resume.retry import Retry
from clipfleet_worker.sinks.redis import RedisSink
from tests.support import redis_rows
from tests.support.ledger import add_job, claim, let_leases_expire, new_token, server_now_ms, try_claim
from tests.support.redis_rows import LONG, bring, chunk_rows, complete, pending_keys, submit_job, visible_rows

RESULTS = [keys.job("job", suffix) for suffix in keys.RESULT_SUFFIXES]


@pytest.fixture
def sink(store: RedisStore) -> RedisSink:
    return RedisSink(store)


def work(ledger: Ledger, sink: RedisSink, claimed: Claim, *, writer: str = "w", items: int = 4) -> str:
    """Bring and complete a chunk."""
    rows = chunk_rows(claimed.chunk_id * items, items, writer=writer)
    return complete(ledger, claimed, bring(sink, claimed, rows))


class TestVisible:
    def test_a_chunk_appears_whole(self, ledger: Ledger, sink: RedisSink, redis_client: redis.Redis) -> None:
        submit_job(ledger, chunks=2)
        claimed = claim(ledger)
        found = bring(sink, claimed, chunk_rows(0, failed=[2]))
        assert visible_rows(redis_client) == {}

        assert complete(ledger, claimed, found) == "done"

        rows = visible_rows(redis_client)
        assert list(rows) == [0, 1, 2, 3]
        assert [row["status"] for row in rows.values()] == ["ok", "ok", "failed", "ok"]
        assert rows[2]["error_code"] == "not_found"
        assert rows[1]["shelf"] == "shelf 1"
        assert "embedding" not in rows[0]
        assert pending_keys(redis_client) == []
        status = ledger.status("job")
        assert (status.ok, status.failed, status.codes) == (3, 1, {"not_found": 1})

    def test_vectors_are_float16_of_ok_rows(self, ledger: Ledger, sink: RedisSink, redis_url: str) -> None:
        submit_job(ledger)
        claimed = claim(ledger)

        complete(ledger, claimed, bring(sink, claimed, chunk_rows(0, failed=[2])))

        with connect(redis_url, decode=False) as client:
            vectors = client.hgetall(keys.job("job", keys.VECTORS))
        assert sorted(vectors) == [b"0", b"1", b"3"]
        assert np.frombuffer(vectors[b"3"], "<f2").tolist() == [3.0] * redis_rows.DIMENSION

    def test_accepted_labels_are_read_back_in_their_place(
        self, ledger: Ledger, store: RedisStore, sink: RedisSink
    ) -> None:
        job = submit_job(ledger)
        claimed, rows = claim(ledger), chunk_rows(0, failed=[2], accepts=True)

        complete(ledger, claimed, bring(sink, claimed, rows))

        found = RedisRows(ledger, store, job).read()
        assert found.schema == rows.schema
        assert [row["accepted"] for batch in found.batches for row in batch.to_pylist()] == [
            [], ["w"], None, ["w"] * 3,
        ]  # fmt: skip

    def test_the_first_id_counts(self, ledger: Ledger, sink: RedisSink, redis_client: redis.Redis) -> None:
        submit_job(ledger, chunks=3)
        first, second, third = claim(ledger), claim(ledger), claim(ledger)

        complete(ledger, second, bring(sink, second, chunk_rows(4, ids=["a", "b", "a", "d"])))
        assert redis_client.hgetall(keys.job("job", keys.IDS)) == {"a": "4", "b": "5", "d": "7"}
        complete(ledger, first, bring(sink, first, chunk_rows(0, ids=["a", "a", "c", "b"])))

        expected = {"a": "0", "b": "3", "c": "2", "d": "7"}
        assert redis_client.hgetall(keys.job("job", keys.IDS)) == expected
        complete(ledger, third, bring(sink, third, chunk_rows(8, ids=["a", "b", "c", "d"])))
        assert redis_client.hgetall(keys.job("job", keys.IDS)) == expected

    @pytest.mark.parametrize("count", [499, 500, 501, 4096])
    def test_a_chunk_of_any_size_is_brought_in_slices(
        self, ledger: Ledger, sink: RedisSink, redis_client: redis.Redis, count: int
    ) -> None:
        submit_job(ledger, chunk_items=count)
        claimed = claim(ledger)
        rows = chunk_rows(0, count, ids=[f"id-{index % 600}" for index in range(count)])

        assert complete(ledger, claimed, bring(sink, claimed, rows)) == "ended"

        assert list(visible_rows(redis_client)) == list(range(count))
        assert redis_client.hlen(keys.job("job", keys.VECTORS)) == count
        assert redis_client.hgetall(keys.job("job", keys.IDS)) == {
            f"id-{index}": str(index) for index in range(min(count, 600))
        }


def test_what_a_dead_one_brought_expires(ledger: Ledger, sink: RedisSink, redis_client: redis.Redis) -> None:
    submit_job(ledger)
    dead, rows = claim(ledger), chunk_rows(0, writer="dead").slice(0, 2)
    sink.write(redis_rows.identity(dead), rows, redis_rows.counts(rows), token=dead.token)
    let_leases_expire(redis_client)
    ledger.reconcile()

    assert work(ledger, sink, claim(ledger), writer="next") == "ended"

    assert {row["label"] for row in visible_rows(redis_client).values()} == {"next"}
    left = pending_keys(redis_client)
    assert left
    assert all(0 < redis_client.pttl(name) <= 3_600_000 for name in left)


class TestEnded:
    def test_a_last_seal_ends_it(self, ledger: Ledger, sink: RedisSink, redis_client: redis.Redis) -> None:
        submit_job(ledger, sealed=False)
        assert work(ledger, sink, claim(ledger)) == "done"

        assert [ledger.seal("job", 1, 4) for _ in range(2)] == ["sealed"] * 2

        assert ledger.status("job").state is JobState.COMPLETED
        assert ledger.claim_finish(new_token(), 60) is None
        assert redis_client.xlen(keys.EVENTS) == 1
        assert redis_client.ttl(keys.job("job")) <= LONG.job_seconds
        assert redis_client.ttl(RESULTS[0]) <= LONG.result_seconds

    def test_results_and_job_stay_for_their_times_and_the_job_not_shorter(
        self, ledger: Ledger, sink: RedisSink, redis_client: redis.Redis
    ) -> None:
        for job_id, retention in (("a", Retention(1000, 500)), ("b", Retention(500, 1000))):
            submit_job(ledger, job_id, chunks=2, retention=retention)
            work(ledger, sink, claim(ledger))
            ledger.cancel(job_id, ttl_seconds=retention.job_seconds)

        def seconds(job_id: str, suffix: str) -> float:
            return redis_client.pttl(keys.job(job_id, suffix)) / 1000

        for suffix in keys.RESULT_SUFFIXES:
            assert seconds("a", suffix) == pytest.approx(500, abs=60)
            assert seconds("b", suffix) == pytest.approx(1000, abs=60)
        for job_id in ("a", "b"):
            assert seconds(job_id, "") == pytest.approx(1000, abs=60)

    @pytest.mark.parametrize("failed", [[], [1]])
    def test_staged_items_stay_only_where_a_retry_may_want_them(
        self, ledger: Ledger, store: RedisStore, sink: RedisSink, failed: list[int]
    ) -> None:
        submit_job(ledger, sealed=False)
        assert RedisOutput(store, "job").create("items", b"...")
        claimed = claim(ledger)
        complete(ledger, claimed, bring(sink, claimed, chunk_rows(0, failed=failed)))

        ledger.seal("job", 1, 4)

        assert [*RedisOutput(store, "job").names("")] == (["items"] if failed else [])

    def test_a_cancelled_job_drops_what_was_brought_and_takes_no_more(
        self, ledger: Ledger, store: RedisStore, sink: RedisSink, redis_client: redis.Redis
    ) -> None:
        submit_job(ledger)
        bring(sink, claim(ledger), chunk_rows(0))

        ledger.cancel("job", ttl_seconds=60)

        assert pending_keys(redis_client) == []
        assert not RedisOutput(store, "job").create("late", b"")

    def test_gone_jobs_stay_gone(self, ledger: Ledger, sink: RedisSink, redis_client: redis.Redis) -> None:
        submit_job(ledger)
        claimed = claim(ledger)
        redis_client.delete(keys.job("job"))

        found = bring(sink, claimed, chunk_rows(0))

        assert complete(ledger, claimed, found) == "missing"
        assert pending_keys(redis_client) == []
        assert not redis_client.exists(*RESULTS)


class TestRetry:
    """A new generation replaces rows of chunks that are complete, and only it may."""

    def retry(self, ledger: Ledger, store: RedisStore) -> bool:
        job = redis_rows.redis_job()
        parts = RedisRows(ledger, store, job).parts_in_place
        hints = cast(Hints, SimpleNamespace(publish_work=lambda count: None))
        return Retry(ledger, hints, RedisOutput(store, job.job_id), parts, job, lease_seconds=30).run()

    def end_with_errors(self, ledger: Ledger, sink: RedisSink) -> Claim:
        """Three chunks; rows 1 and 2 of the first fail and row 3 of the last. Returns the first claim."""
        submit_job(ledger, chunks=3)
        claims = [claim(ledger) for _ in range(3)]
        for one, failed in zip(claims, ([1, 2], [], [3]), strict=True):
            rows = chunk_rows(one.chunk_id * 4, failed=failed, writer="first")
            word = complete(ledger, one, bring(sink, one, rows))
        assert word == "ended"
        return claims[0]

    def test_only_failed_chunks_come_again(self, ledger: Ledger, store: RedisStore, sink: RedisSink) -> None:
        self.end_with_errors(ledger, sink)

        assert self.retry(ledger, store)

        again = claim(ledger)
        assert (again.chunk_id, again.generation) == (0, 1)
        older = sink.older(redis_rows.identity(again))
        assert older is not None
        assert older.rows.drop_columns("embedding").equals(
            chunk_rows(0, failed=[1, 2], writer="first").drop_columns("embedding")
        )
        assert older.rows["embedding"].to_pylist()[3] == [3.0] * redis_rows.DIMENSION
        assert claim(ledger).chunk_id == 2
        assert try_claim(ledger) is None

    def test_short_chunks_stay_short(self, ledger: Ledger, store: RedisStore, sink: RedisSink) -> None:
        job = redis_rows.redis_job()
        ledger.submit(job)
        ledger.stage("job", 0, 2, 6)
        ledger.seal("job", 2, 6)
        first, second = claim(ledger), claim(ledger)
        complete(ledger, first, bring(sink, first, chunk_rows(0, 2)))
        complete(ledger, second, bring(sink, second, chunk_rows(2, failed=[3])))

        assert self.retry(ledger, store)

        again = claim(ledger)
        older = sink.older(redis_rows.identity(again))
        assert again.chunk_id == 1
        assert older is not None
        assert older.rows["item_index"].to_pylist() == [2, 3, 4, 5]
        assert ledger.status("job").ok == 2

    def test_the_retried_rows_replace_the_failed_ones_and_are_counted_once(
        self, ledger: Ledger, store: RedisStore, sink: RedisSink, redis_client: redis.Redis
    ) -> None:
        self.end_with_errors(ledger, sink)
        self.retry(ledger, store)

        assert work(ledger, sink, claim(ledger), writer="second") == "done"
        assert work(ledger, sink, claim(ledger), writer="second") == "ended"

        status = ledger.status("job")
        assert (status.state, status.ok, status.failed, status.codes) == (JobState.COMPLETED, 12, 0, {})
        rows = visible_rows(redis_client)
        assert [row["label"] for row in rows.values()] == ["second"] * 4 + ["first"] * 4 + ["second"] * 4
        assert all(row["error_code"] is None for row in rows.values())
        assert redis_client.hlen(keys.job("job", keys.VECTORS)) == 12
        events = [(event["generation"], event["state"]) for _, event in redis_client.xrange(keys.EVENTS)]
        assert events == [("0", "completed_with_errors"), ("1", "completed")]

    def test_rows_stay_while_it_runs_and_their_time_begins_anew_at_its_end(
        self, ledger: Ledger, store: RedisStore, sink: RedisSink, redis_client: redis.Redis
    ) -> None:
        self.end_with_errors(ledger, sink)
        rows_key = keys.job("job", keys.ROWS)
        assert redis_client.ttl(rows_key) <= 500

        self.retry(ledger, store)
        assert redis_client.ttl(rows_key) > 86_400

        work(ledger, sink, claim(ledger))
        work(ledger, sink, claim(ledger))
        assert redis_client.ttl(rows_key) <= 500

    def test_rows_that_have_expired_cannot_be_retried(
        self, ledger: Ledger, store: RedisStore, sink: RedisSink, redis_client: redis.Redis
    ) -> None:
        self.end_with_errors(ledger, sink)
        redis_client.delete(*RESULTS)

        with pytest.raises(ResultsExpiredError, match="the rows of job job have expired"):
            self.retry(ledger, store)

        assert ledger.status("job").state is JobState.COMPLETED_WITH_ERRORS


class TestFullMemory:
    """Redis refuses to grow (`noeviction`): work waits, nothing is lost, what was brought can end."""

    @pytest.fixture
    def full(self, redis_client: redis.Redis) -> Iterator[redis.Redis]:
        """The server; `fill` it with maxmemory, it is emptied afterwards."""
        yield redis_client
        redis_client.config_set("maxmemory", 0)

    def test_it_is_said_with_the_way_out(self, ledger: Ledger, store: RedisStore, full: redis.Redis) -> None:
        submit_job(ledger, sealed=False)
        full.config_set("maxmemory", 1)

        with pytest.raises(RedisUnavailableError, match="its memory is full: raise maxmemory"):
            RedisOutput(store, "job").create("items", b"...")

    def test_a_chunk_waits_and_makes_room(self, ledger: Ledger, sink: RedisSink, full: redis.Redis) -> None:
        submit_job(ledger, chunks=2)
        claimed = claim(ledger)
        bring(sink, claimed, chunk_rows(0).slice(0, 2))
        full.config_set("maxmemory", 1)

        with pytest.raises(RedisUnavailableError):
            bring(sink, claimed, chunk_rows(0))
        assert ledger.release(claimed, "waits", reason="full") == "released"

        assert pending_keys(full) == []
        with pytest.raises(RedisUnavailableError):
            try_claim(ledger)
        full.config_set("maxmemory", 0)
        assert claim(ledger).chunk_id == 1
        assert ledger.status("job").due_chunks == 1

    def test_what_was_brought_is_completed(self, ledger: Ledger, sink: RedisSink, full: redis.Redis) -> None:
        submit_job(ledger)
        claimed = claim(ledger)
        found = bring(sink, claimed, chunk_rows(0))
        full.config_set("maxmemory", 1)

        assert complete(ledger, claimed, found) == "ended"

        assert len(visible_rows(full)) == 4

    def test_leases_are_renewed(self, ledger: Ledger, full: redis.Redis) -> None:
        submit_job(ledger)
        claimed = claim(ledger)
        full.config_set("maxmemory", 1)

        assert ledger.renew([Lease("job", "0", claimed.token)], 60) == ["held"]

        assert full.zscore(keys.LEASES, "job:0") > server_now_ms(full)

    def test_chunks_are_taken_back_and_jobs_are_finished(self, ledger: Ledger, full: redis.Redis) -> None:
        add_job(ledger, "in-a-folder")
        ledger.complete(claim(ledger), ok=10, failed=0, codes={}, work_seconds={})
        submit_job(ledger)
        claim(ledger)
        let_leases_expire(full, ("job", 0))
        full.config_set("maxmemory", 1)

        assert ledger.reconcile() == (1, 1)
        finishing = ledger.claim_finish(new_token(), 60)
        assert finishing is not None
        assert ledger.finish(finishing, ttl_seconds=60) == "completed"

        full.config_set("maxmemory", 0)
        assert claim(ledger).losses == 1

    def test_workers_are_heard_of(self, ledger: Ledger, full: redis.Redis) -> None:
        """Who believes to be alone gives up what others could do."""
        full.config_set("maxmemory", 1)

        ledger.heartbeat(WorkerFacts("w", "host", 1, ("demo",)))

        assert [facts.worker_id for facts in ledger.workers()] == ["w"]
        assert min(full.ttl(keys.WORKERS), full.ttl(keys.WORKER_FACTS)) > 0
