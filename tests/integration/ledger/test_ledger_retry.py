"""Retries and rebuilds in the ledger, one idea per test, on a real server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import redis

from clipfleet.contract.bottleneck import NO_METERS, Meters
from clipfleet.contract.jobs import JobState
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import Draft, Ledger
from tests.support.ledger import (
    DAY_MS,
    add_job,
    claim,
    claim_finish,
    complete,
    draft,
    ends,
    make_job,
    new_token,
    try_claim,
    work_off,
)

CODES = {"timeout": 2}


def end_job(ledger: Ledger, chunks: int = 4) -> None:
    """Chunk 1 has failed rows, the others have none."""
    add_job(ledger, chunks=chunks)
    for _ in range(chunks):
        claimed = claim(ledger)
        complete(ledger, claimed, ok=8 if claimed.chunk_id == 1 else 10, failed=2 * (claimed.chunk_id == 1))
    finish = claim_finish(ledger)
    assert ledger.finish(finish, ttl_seconds=1000) == "completed_with_errors"


def retry(ledger: Ledger, what: Draft, *, generation: int = 1, codes: Sequence[str] = ()) -> Any:
    token = new_token()
    ledger.drafts.begin("job", token)
    return ledger.drafts.retry("job", token, what, generation=generation, codes=codes)


def rebuild(ledger: Ledger, what: Draft, state: JobState, *, generation: int = 0, items: int = 40) -> Any:
    token = new_token()
    ledger.drafts.begin("job", token)
    return ledger.drafts.rebuild(
        make_job(), token, what, state=state, generation=generation, items=items, ttl_seconds=1000
    )


RETRIED = draft(4, done=[0, 2, 3], ok=30)


class TestRetry:
    def test_only_chunks_that_are_due_are_handed_out_in_the_new_generation(self, ledger: Ledger) -> None:
        end_job(ledger)

        assert retry(ledger, RETRIED, codes=["timeout", "server_error"]) == ("started", JobState.RUNNING)

        claimed = claim(ledger)
        assert (claimed.chunk_id, claimed.generation, claimed.has_history) == (1, 1, False)
        assert claimed.retry_codes == ("timeout", "server_error")
        assert try_claim(ledger) is None

    def test_the_counts_are_those_of_the_parts_that_stay_and_then_of_all(
        self, ledger: Ledger, redis_client: redis.Redis
    ) -> None:
        end_job(ledger)
        retry(ledger, RETRIED)
        status = ledger.status("job")
        assert (status.total, status.ok, status.failed, status.done_chunks) == (40, 30, 0, 3)
        assert (status.generation, status.codes, status.finished_ms) == (1, {}, None)

        assert complete(ledger, claim(ledger), ok=9, failed=1) == "finishing"
        assert ledger.finish(claim_finish(ledger), ttl_seconds=1000) == "completed_with_errors"

        status = ledger.status("job")
        assert (status.ok, status.failed, status.codes) == (39, 1, {"not_found": 1})
        assert ends(redis_client) == [
            ("job", "0", "completed_with_errors"),
            ("job", "1", "completed_with_errors"),
        ]

    def test_where_the_time_went_is_measured_anew(self, ledger: Ledger) -> None:
        add_job(ledger)
        meters = Meters({"write": 2.0, "fetching": 3.0})
        ledger.complete(
            claim(ledger), ok=15, failed=1, codes={"timeout": 1}, work_seconds={"write": 2.0}, meters=meters
        )
        ledger.finish(claim_finish(ledger), ttl_seconds=1000)
        assert ledger.status("job").meters == meters

        retry(ledger, draft(1))

        status = ledger.status("job")
        assert (status.meters, status.ran, status.work_seconds) == (NO_METERS, 0, {"write": 2.0})

    def test_a_job_that_goes_on_is_kept_like_an_unfinished_one_and_its_draft_is_gone(
        self, ledger: Ledger, redis_client: redis.Redis
    ) -> None:
        end_job(ledger)
        retry(ledger, RETRIED)

        assert redis_client.pttl(keys.job("job")) > 29 * DAY_MS
        assert redis_client.pttl(keys.job("job", keys.DONE)) > 29 * DAY_MS
        assert redis_client.keys(keys.job("job", keys.DRAFT) + "*") == []

    def test_a_retry_whose_answer_was_lost_starts_once(
        self, ledger: Ledger, redis_client: redis.Redis
    ) -> None:
        end_job(ledger)
        token = new_token()
        ledger.drafts.begin("job", token)
        for _ in range(2):
            assert ledger.drafts.retry("job", token, RETRIED, generation=1) == ("started", JobState.RUNNING)
        complete(ledger, claim(ledger))
        ledger.finish(claim_finish(ledger), ttl_seconds=1000)

        assert ledger.drafts.retry("job", token, RETRIED, generation=1) == ("started", JobState.COMPLETED)
        assert ledger.status("job").generation == 1
        assert try_claim(ledger) is None
        assert len(ends(redis_client)) == 2

    def test_of_two_retries_the_one_that_began_last_is_started(self, ledger: Ledger) -> None:
        end_job(ledger)
        first, second = new_token(), new_token()
        ledger.drafts.begin("job", first)
        ledger.drafts.begin("job", second)

        assert ledger.drafts.retry("job", first, draft(4), generation=1) == ("taken", None)
        assert ledger.drafts.retry("job", second, RETRIED, generation=1) == ("started", JobState.RUNNING)
        assert ledger.drafts.retry("job", first, draft(4), generation=2) == ("taken", None)
        assert ledger.status("job").done_chunks == 3

    def test_a_retry_that_is_overtaken_right_before_its_last_call_starts_nothing(
        self, ledger: Ledger
    ) -> None:
        end_job(ledger)
        first, second = new_token(), new_token()
        ledger.drafts.begin("job", first)
        assert ledger.drafts.note("job", first, RETRIED)
        ledger.drafts.begin("job", second)
        assert ledger.drafts.note("job", second, draft(4))

        assert ledger._run("retry", "job", first, 1, "", 4, 30, 0)[0] == "taken"
        assert ledger.status("job").state is JobState.COMPLETED_WITH_ERRORS

    def test_a_job_that_has_not_ended_is_not_retried(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=2)
        claimed = claim(ledger)

        assert retry(ledger, draft(2)) == ("refused", JobState.RUNNING)
        assert ledger.status("job").generation == 0
        assert complete(ledger, claimed) == "done"

    def test_a_job_that_is_forgotten_is_not_retried(self, ledger: Ledger) -> None:
        assert retry(ledger, draft(2)) == ("missing", None)

    def test_a_worker_of_an_earlier_generation_changes_nothing(
        self, ledger: Ledger, redis_client: redis.Redis
    ) -> None:
        # Given a cancelled job with a worker that sleeps over its chunk, and one over its finishing
        add_job(ledger, chunks=2)
        asleep = claim(ledger)
        ledger.cancel("job", ttl_seconds=1000)
        retry(ledger, draft(2, next_chunk=1))

        ledger.fail("job", "no disk", ttl_seconds=1000, holder=asleep)
        assert complete(ledger, asleep) == "stale"
        assert ledger.release(asleep, "failures", reason="bug") == "not_held"
        assert ledger.status("job").ok == 0
        work_off(ledger)
        old_finish = claim_finish(ledger)
        ledger.finish(old_finish, ttl_seconds=1000)
        retry(ledger, draft(2, done=[0], ok=10), generation=2)
        work_off(ledger)
        assert ledger.status("job").state is JobState.FINISHING
        assert ledger.finish(old_finish, ttl_seconds=1000) == "stale"
        assert ends(redis_client) == [("job", "0", "cancelled"), ("job", "1", "completed")]

    def test_a_cancelled_job_goes_on_with_what_nobody_had_claimed(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=5)
        complete(ledger, claim(ledger))
        claim(ledger)
        ledger.cancel("job", ttl_seconds=1000)

        assert retry(ledger, draft(5, done=[0], next_chunk=2, ok=10))[0] == "started"

        assert [one.chunk_id for one in work_off(ledger)] == [1, 2, 3, 4]
        assert ledger.status("job").state is JobState.FINISHING
        assert ledger.status("job").ok == 50

    def test_a_cancelled_job_whose_parts_are_all_there_has_only_to_be_finished(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=1)
        claim(ledger)
        ledger.cancel("job", ttl_seconds=1000)

        assert retry(ledger, draft(1, done=[0], ok=10)) == ("started", JobState.FINISHING)
        assert ledger.finish(claim_finish(ledger), ttl_seconds=1000) == "completed"

    def test_a_job_that_was_cancelled_during_its_submit_takes_items_again(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=2, sealed=False)
        ledger.cancel("job", ttl_seconds=1000)

        assert retry(ledger, draft(2, next_chunk=0)) == ("started", JobState.SUBMITTING)

        assert ledger.stage("job", 2, 1, 10) == "staged"
        assert ledger.seal("job", 3, 30) == "sealed"
        assert len(work_off(ledger)) == 3

    def test_many_chunks_are_sent_in_slices(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=2500, chunk_items=1)
        ledger.cancel("job", ttl_seconds=1000)

        assert retry(ledger, draft(2500, done=[7]))[0] == "started"

        status = ledger.status("job")
        assert (status.due_chunks, status.done_chunks, status.chunks) == (2499, 1, 2500)


FILES = [(0, 3), (3, 1)]


class TestRebuild:
    def test_a_job_comes_back_as_its_output_shows_it(self, ledger: Ledger, redis_client: redis.Redis) -> None:
        what = draft(4, done=[0, 2], next_chunk=3, ok=18, codes=CODES, staged=FILES)

        assert rebuild(ledger, what, JobState.RUNNING) == ("rebuilt", JobState.RUNNING)

        status = ledger.status("job")
        assert (status.total, status.ok, status.failed, status.codes) == (40, 18, 2, CODES)
        assert (status.chunks, status.done_chunks, status.sealed) == (4, 2, True)
        assert ledger.staged_files("job") == FILES
        assert ledger.job("job").job_id == "job"
        claims = work_off(ledger)
        assert [(one.chunk_id, one.first_chunk, one.chunks) for one in claims] == [(1, 0, 3), (3, 3, 1)]
        assert ledger.finish(claim_finish(ledger), ttl_seconds=1000) == "completed_with_errors"
        assert ends(redis_client) == [("job", "0", "completed_with_errors")]

    def test_a_job_that_is_known_stays_as_it_is(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=4)
        claimed = claim(ledger)

        assert rebuild(ledger, draft(4, staged=FILES), JobState.SUBMITTING) == ("exists", JobState.RUNNING)

        assert ledger.staged_files("job") == [(0, 4)]
        assert complete(ledger, claimed) == "done"

    def test_a_rebuild_whose_answer_was_lost_may_be_repeated(self, ledger: Ledger) -> None:
        token = new_token()
        ledger.drafts.begin("job", token)
        for _ in range(2):
            answer = ledger.drafts.rebuild(
                make_job(), token, draft(4, staged=FILES), state=JobState.RUNNING, generation=0, items=40,
                ttl_seconds=1000,
            )  # fmt: skip
            assert answer == ("rebuilt", JobState.RUNNING)

    def test_of_two_rebuilds_the_one_that_began_last_counts(self, ledger: Ledger) -> None:
        first = new_token()
        ledger.drafts.begin("job", first)
        ledger.drafts.begin("job", new_token())

        answer = ledger.drafts.rebuild(
            make_job(), first, draft(4, staged=FILES), state=JobState.RUNNING, generation=0, items=40,
            ttl_seconds=1000,
        )  # fmt: skip
        assert answer == ("taken", None)

    @pytest.mark.parametrize("state", [JobState.COMPLETED, JobState.COMPLETED_WITH_ERRORS])
    def test_a_job_that_had_ended_is_over_and_its_event_is_not_sent_again(
        self, ledger: Ledger, redis_client: redis.Redis, state: JobState
    ) -> None:
        assert rebuild(ledger, draft(4, done=range(4), ok=40, staged=FILES), state) == ("rebuilt", state)

        assert ends(redis_client) == []
        assert try_claim(ledger) is None
        assert ledger.claim_finish(new_token(), 600) is None
        assert redis_client.pttl(keys.job("job")) <= 1_000_000
        assert ledger.status("job").finished_ms is not None

    def test_a_job_whose_parts_are_all_there_has_only_to_be_finished(self, ledger: Ledger) -> None:
        what = draft(4, done=range(4), ok=40, staged=FILES)

        assert rebuild(ledger, what, JobState.RUNNING) == ("rebuilt", JobState.FINISHING)
        assert ledger.finish(claim_finish(ledger), ttl_seconds=1000) == "completed"

    def test_a_job_that_was_not_sealed_waits_for_its_submit(self, ledger: Ledger) -> None:
        rebuild(ledger, draft(4, done=[0], next_chunk=1, ok=10, staged=FILES), JobState.SUBMITTING)

        assert ledger.submit(make_job()) == (False, JobState.SUBMITTING)
        assert ledger.staged_files("job") == FILES
        assert ledger.stage("job", 4, 1, 10) == "staged"
        assert ledger.seal("job", 5, 50) == "sealed"
        assert [one.chunk_id for one in work_off(ledger)] == [1, 2, 3, 4]

    def test_the_generation_is_that_of_the_output(self, ledger: Ledger) -> None:
        rebuild(ledger, draft(4, staged=FILES), JobState.RUNNING, generation=3)

        assert claim(ledger).generation == 3

    def test_a_job_is_listed_by_the_time_it_was_made(self, ledger: Ledger, redis_client: redis.Redis) -> None:
        rebuild(ledger, draft(4, staged=FILES), JobState.RUNNING)

        assert [status.job_id for status in ledger.jobs()] == ["job"]
        created_ms = int(make_job().created_at.timestamp() * 1000)
        assert abs(ledger.status("job").created_ms - created_ms) < 60_000
