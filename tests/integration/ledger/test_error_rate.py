"""A job of which too many rows fail stops early: when, with which words, and how it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any

import pytest
import redis

from clipfleet.contract.jobs import JobState
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import Draft, Ledger, Retention
from clipfleet.ledger.row_store import RedisStore
from clipfleet_worker.sinks.redis import RedisSink
from tests.support.ledger import add_job, claim, complete, draft, keys_without_ttl, make_job, new_token
from tests.support.redis_rows import bring, chunk_rows, pending_keys, redis_job, visible_rows

RATE = 0.2


def outcome(ledger: Ledger, failed: int, *, of: int, codes: Mapping[str, int] | None = None) -> str:
    """Claim a chunk and complete it with so many failed rows."""
    return ledger.complete(
        claim(ledger), ok=of - failed, failed=failed, codes=codes or {"not_found": failed}, work_seconds={}
    )


def retry(ledger: Ledger, draft: Draft, *, generation: int = 1, rate: float | None = None) -> None:
    token = new_token()
    ledger.drafts.begin("job", token)
    word, _ = ledger.drafts.retry("job", token, draft, generation=generation, max_error_rate=rate)
    assert word == "started"


def open_again(chunks: int, *, next_chunk: int, ok: int = 0, failed: int = 0, done: int = 0) -> Draft:
    """The first `done` chunks are as they should be; the others below `next_chunk` are run again."""
    codes = {"not_found": failed} if failed else {}
    return draft(chunks, done=range(done), next_chunk=next_chunk, ok=ok, codes=codes)


# The job, and for each chunk the rows that failed, all its rows, and the answer.
WHEN: dict[str, tuple[dict[str, Any], list[tuple[int, int, str]]]] = {
    "a thousand rows are enough": ({"chunk_items": 500}, [(500, 500, "done"), (500, 500, "stopped")]),
    "of a small job a tenth is enough": (
        {"chunks": 20, "chunk_items": 10},
        [(10, 10, "done"), (10, 10, "stopped")],
    ),
    "one chunk at least": ({"chunks": 2, "chunk_items": 1}, [(1, 1, "stopped")]),
    "a job without another chunk is finished": ({"chunks": 1}, [(10, 10, "finishing")]),
    "a rate of zero allows none": (
        {"chunk_items": 1000, "max_error_rate": 0.0},
        [(0, 1000, "done"), (1, 1000, "stopped")],
    ),
    "a job without a rate never stops": (
        {"chunks": 2, "chunk_items": 1000, "max_error_rate": None},
        [(1000, 1000, "done"), (1000, 1000, "finishing")],
    ),
    "nor does one that allows all": (
        {"chunks": 2, "chunk_items": 1000, "max_error_rate": 1.0},
        [(1000, 1000, "done"), (1000, 1000, "finishing")],
    ),
    "a job that gets better continues": (
        {"chunks": 10, "chunk_items": 999, "sealed": False, "max_error_rate": 0.5},
        [(999, 999, "done"), (0, 999, "done"), (0, 999, "done")],
    ),
}


class TestWhen:
    @pytest.mark.parametrize(("job", "chunks"), WHEN.values(), ids=WHEN)
    def test_a_job_stops_once_enough_rows_were_run_and_too_many_failed(
        self, ledger: Ledger, job: dict[str, Any], chunks: list[tuple[int, int, str]]
    ) -> None:
        add_job(ledger, **{"chunks": 100, "max_error_rate": RATE, **job})

        assert [outcome(ledger, failed, of=rows) for failed, rows, _ in chunks] == [
            word for _, _, word in chunks
        ]

    @pytest.mark.parametrize("rate", [0.07, 0.29, 0.57, 0.58, 1 / 3])
    def test_the_rate_is_allowed_where_a_product_would_be_rounded(self, ledger: Ledger, rate: float) -> None:
        add_job(ledger, chunks=100, chunk_items=3000, max_error_rate=rate)
        assert outcome(ledger, round(rate * 3000), of=3000) == "done"
        assert outcome(ledger, 3000, of=3000) == "stopped"

    def test_while_items_are_still_coming_a_tenth_is_not_known(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=20, chunk_items=10, sealed=False, max_error_rate=RATE)
        assert [outcome(ledger, 10, of=10) for _ in range(5)] == ["done"] * 5
        assert ledger.seal("job", 20, 200) == "sealed"
        assert outcome(ledger, 10, of=10) == "stopped"

    def test_a_paused_job_is_stopped_by_what_was_under_way(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=10, chunk_items=1000, max_error_rate=RATE)
        claimed = claim(ledger)
        ledger.pause("job", "by hand")
        assert complete(ledger, claimed, ok=0, failed=1000) == "stopped"


class TestTheEnd:
    def test_one_event_whatever_comes_late_or_twice(self, ledger: Ledger, redis_client: redis.Redis) -> None:
        add_job(ledger, chunks=20, chunk_items=1000, max_error_rate=RATE)
        first, second, third = claim(ledger), claim(ledger), claim(ledger)

        words = [complete(ledger, one, ok=0, failed=1000) for one in (first, first, second, third)]

        assert words == ["stopped", "cancelled", "cancelled", "cancelled"]
        (event,) = [entry for _, entry in redis_client.xrange(keys.EVENTS)]
        assert (event["state"], event["generation"], event["failed"]) == ("cancelled", "0", "1000")
        assert event["reason"] == ledger.status("job").reason
        assert (ledger.status("job").failed, ledger.status("job").done_chunks) == (1000, 1)

    def test_it_is_kept_as_long_as_other_ended_jobs(self, ledger: Ledger, redis_client: redis.Redis) -> None:
        add_job(ledger, chunks=20, chunk_items=1000, max_error_rate=RATE)
        ledger.complete(
            claim(ledger),
            ok=0,
            failed=1000,
            codes={"not_found": 1000},
            work_seconds={"fetch": 1.0},
            ttl_seconds=77,
        )
        assert 70_000 < redis_client.pttl(keys.job("job")) <= 77_000


class TestGoingOn:
    def stopped(self, ledger: Ledger) -> None:
        """Of twenty chunks one is done, with every fourth row failed."""
        add_job(ledger, chunks=20, chunk_items=1000, max_error_rate=RATE)
        assert outcome(ledger, 250, of=1000) == "stopped"

    def test_only_rows_that_are_run_again_count(self, ledger: Ledger) -> None:
        self.stopped(ledger)
        retry(ledger, open_again(20, next_chunk=1))
        again = claim(ledger)
        # All but ten of the failed ones are good now; kept rows are no merit of this generation.
        word = ledger.complete(
            again, ok=990, failed=10, codes={"not_found": 10}, work_seconds={}, ran=(250, 10)
        )
        assert word == "done"
        assert outcome(ledger, 300, of=1000) == "stopped"
        assert "310 of 1250 rows failed (24.8 %)" in ledger.status("job").reason

    def test_rows_that_were_kept_as_failed_do_not_stop_it_again(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=4, chunk_items=1000, max_error_rate=RATE)
        assert outcome(ledger, 900, of=1000) == "stopped"
        retry(ledger, open_again(4, next_chunk=1, done=1, ok=100, failed=900))
        assert [outcome(ledger, 100, of=1000) for _ in range(3)] == ["done", "done", "finishing"]

    def test_a_part_that_a_dead_worker_left_counts_for_nothing(self, ledger: Ledger) -> None:
        self.stopped(ledger)
        retry(ledger, open_again(20, next_chunk=1))
        adopted = claim(ledger)
        word = ledger.complete(
            adopted, ok=700, failed=300, codes={"not_found": 300}, work_seconds={}, ran=(0, 0)
        )
        assert word == "done"

    def test_a_tenth_is_one_of_the_rows_that_are_left(self, ledger: Ledger) -> None:
        self.stopped(ledger)
        retry(ledger, open_again(20, next_chunk=19, done=19, ok=19_000))
        # One chunk of 1,000 is left, which is the last one: nothing could be stopped after it.
        assert outcome(ledger, 1000, of=1000) == "finishing"

    @pytest.mark.parametrize(("rate", "word"), [(None, "stopped"), (0.2, "stopped"), (0.3, "done")])
    def test_a_retry_may_allow_more(self, ledger: Ledger, rate: float | None, word: str) -> None:
        self.stopped(ledger)
        retry(ledger, open_again(20, next_chunk=0), rate=rate)
        assert outcome(ledger, 250, of=1000) == word

    def test_what_was_allowed_stays_allowed(self, ledger: Ledger) -> None:
        self.stopped(ledger)
        retry(ledger, open_again(20, next_chunk=0), rate=0.3)
        assert outcome(ledger, 400, of=1000) == "stopped"
        retry(ledger, open_again(20, next_chunk=0), generation=2)
        assert outcome(ledger, 250, of=1000) == "done"

    def test_a_job_that_redis_lost_is_as_strict(self, ledger: Ledger, redis_client: redis.Redis) -> None:
        token = new_token()
        ledger.drafts.begin("job", token)
        ledger.drafts.rebuild(
            make_job(max_error_rate=RATE), token, draft(20, next_chunk=0, staged=[(0, 20)]),
            state=JobState.RUNNING, generation=0, items=20_000, ttl_seconds=60,
        )  # fmt: skip
        assert outcome(ledger, 250, of=1000) == "stopped"
        assert keys_without_ttl(redis_client) == []


def test_only_complete_rows_in_redis_stay(ledger: Ledger, redis_client: redis.Redis, redis_url: str) -> None:
    ledger.submit(redis_job().model_copy(update={"max_error_rate": RATE}), Retention(60, 90))
    ledger.stage("job", 0, 3, 12)
    ledger.seal("job", 3, 12)
    first, other = claim(ledger), claim(ledger)
    with closing(RedisStore(redis_url)) as store:
        sink = RedisSink(store)
        counts = bring(sink, first, chunk_rows(0, failed=range(4)))
        bring(sink, other, chunk_rows(4))

    word = ledger.complete(
        first, ok=0, failed=4, codes=counts.codes, work_seconds={"write": 0.5}, ttl_seconds=5
    )

    assert word == "stopped"
    assert list(visible_rows(redis_client)) == [0, 1, 2, 3]
    assert pending_keys(redis_client) == []
    assert 80_000 < redis_client.pttl(keys.job("job")) <= 90_000  # as the submit said, not as the worker
