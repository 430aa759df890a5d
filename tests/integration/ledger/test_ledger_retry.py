"""Retries and rebuilds in the ledger, one idea per test, on a real server."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from clipfleet.contract.bottleneck import NO_METERS, Meters
from clipfleet.contract.jobs import JobState
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import Draft, Ledger
from tests.support import ledger as steps
from tests.support.ledger import add_job, claim, claim_finish, complete, draft, ends, try_claim, work_off

RETRIED = draft(4, done=[0, 2, 3], ok=30)
STARTED = ("started", JobState.RUNNING)


def begin(ledger: Ledger) -> str:
    """The token of a draft that begins now."""
    token = steps.new_token()
    ledger.drafts.begin("job", token)
    return token


def finish(ledger: Ledger) -> str:
    return ledger.finish(claim_finish(ledger), ttl_seconds=1000)


def retry(ledger: Ledger, what: Draft, *, token: str = "", generation: int = 1, **options: Any) -> Any:
    token = token or begin(ledger)
    return ledger.drafts.retry("job", token, what, generation=generation, **options)


class TestRetry:
    @pytest.fixture
    def ended(self, ledger: Ledger) -> None:
        """Of the four chunks of a job, chunk 1 has failed rows."""
        add_job(ledger, chunks=4)
        for failed in (0, 2, 0, 0):
            complete(ledger, claim(ledger), ok=10 - failed, failed=failed)
        assert finish(ledger) == "completed_with_errors"

    @pytest.mark.usefixtures("ended")
    def test_only_due_chunks_are_handed_out_in_the_new_generation(self, ledger: Ledger) -> None:
        assert retry(ledger, RETRIED, codes=["timeout", "server_error"]) == STARTED

        claimed = claim(ledger)
        assert (claimed.chunk_id, claimed.generation, claimed.has_history) == (1, 1, False)
        assert claimed.retry_codes == ("timeout", "server_error")
        assert try_claim(ledger) is None

    @pytest.mark.usefixtures("ended")
    def test_the_counts_begin_with_parts_that_stay(self, ledger: Ledger, redis_client: redis.Redis) -> None:
        retry(ledger, RETRIED)
        status = ledger.status("job")
        assert (status.total, status.ok, status.failed, status.done_chunks) == (40, 30, 0, 3)
        assert (status.generation, status.codes, status.finished_ms) == (1, {}, None)
        assert redis_client.pttl(keys.job("job")) > 29 * steps.DAY_MS
        assert redis_client.pttl(keys.job("job", keys.DONE)) > 29 * steps.DAY_MS
        assert redis_client.keys(keys.job("job", keys.DRAFT) + "*") == []

        assert complete(ledger, claim(ledger), ok=9, failed=1) == "finishing"
        assert finish(ledger) == "completed_with_errors"

        status = ledger.status("job")
        assert (status.ok, status.failed, status.codes) == (39, 1, {"not_found": 1})
        assert ends(redis_client) == [("job", each, "completed_with_errors") for each in "01"]

    def test_where_the_time_went_is_measured_anew(self, ledger: Ledger) -> None:
        add_job(ledger)
        meters, spent = Meters({"write": 2.0, "fetching": 3.0}), {"write": 2.0}
        ledger.complete(
            claim(ledger), ok=15, failed=1, codes={"timeout": 1}, work_seconds=spent, meters=meters
        )
        finish(ledger)
        assert ledger.status("job").meters == meters

        retry(ledger, draft(1))

        status = ledger.status("job")
        assert (status.meters, status.ran, status.work_seconds) == (NO_METERS, 0, spent)

    @pytest.mark.usefixtures("ended")
    def test_one_whose_answer_was_lost_starts_once(self, ledger: Ledger, redis_client: redis.Redis) -> None:
        token = begin(ledger)
        assert [retry(ledger, RETRIED, token=token) for _ in range(2)] == [STARTED] * 2
        complete(ledger, claim(ledger))
        finish(ledger)

        assert retry(ledger, RETRIED, token=token) == ("started", JobState.COMPLETED)
        assert ledger.status("job").generation == 1
        assert try_claim(ledger) is None
        assert len(ends(redis_client)) == 2

    @pytest.mark.usefixtures("ended")
    def test_of_two_the_one_that_began_last_is_started(self, ledger: Ledger) -> None:
        first, second = begin(ledger), begin(ledger)

        assert retry(ledger, draft(4), token=first) == ("taken", None)
        assert retry(ledger, RETRIED, token=second) == STARTED
        assert retry(ledger, draft(4), token=first, generation=2) == ("taken", None)
        assert ledger.status("job").done_chunks == 3

    @pytest.mark.usefixtures("ended")
    def test_one_that_is_overtaken_right_before_its_last_call_starts_nothing(self, ledger: Ledger) -> None:
        first = begin(ledger)
        assert ledger.drafts.note("job", first, RETRIED)
        assert ledger.drafts.note("job", begin(ledger), draft(4))

        assert ledger._run("retry", "job", first, 1, "", 4, 30, 0)[0] == "taken"
        assert ledger.status("job").state is JobState.COMPLETED_WITH_ERRORS

    def test_only_a_known_job_that_has_ended_is_retried(self, ledger: Ledger) -> None:
        assert retry(ledger, draft(2)) == ("missing", None)
        add_job(ledger, chunks=2)
        claimed = claim(ledger)

        assert retry(ledger, draft(2)) == ("refused", JobState.RUNNING)
        assert ledger.status("job").generation == 0
        assert complete(ledger, claimed) == "done"

    def test_an_earlier_generation_changes_nothing(self, ledger: Ledger, redis_client: redis.Redis) -> None:
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

        assert retry(ledger, draft(5, done=[0], next_chunk=2, ok=10)) == STARTED

        assert [one.chunk_id for one in work_off(ledger)] == [1, 2, 3, 4]
        assert (ledger.status("job").state, ledger.status("job").ok) == (JobState.FINISHING, 50)

    def test_a_cancelled_job_whose_parts_are_all_there_has_only_to_be_finished(self, ledger: Ledger) -> None:
        steps.bring_into(ledger, JobState.CANCELLED)

        assert retry(ledger, draft(1, done=[0], ok=10)) == ("started", JobState.FINISHING)
        assert finish(ledger) == "completed"

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

        assert retry(ledger, draft(2500, done=[7])) == STARTED

        status = ledger.status("job")
        assert (status.due_chunks, status.done_chunks, status.chunks) == (2499, 1, 2500)


class TestRebuild:
    FILES = ((0, 3), (3, 1))
    REBUILT = ("rebuilt", JobState.RUNNING)

    def rebuild(
        self, ledger: Ledger, state: JobState = JobState.RUNNING, *, token: str = "", generation: int = 0,
        **facts: Any
    ) -> Any:  # fmt: skip
        """Of four chunks in two files."""
        return ledger.drafts.rebuild(
            steps.make_job(), token or begin(ledger), draft(4, staged=self.FILES, **facts), state=state,
            generation=generation, items=40, ttl_seconds=1000,
        )  # fmt: skip

    def test_a_job_comes_back_as_its_output_shows_it(self, ledger: Ledger, redis_client: redis.Redis) -> None:
        codes = {"timeout": 2}
        facts: Any = {"done": [0, 2], "next_chunk": 3, "ok": 18, "codes": codes}
        assert self.rebuild(ledger, generation=3, **facts) == self.REBUILT

        status = ledger.status("job")
        assert (status.total, status.ok, status.failed, status.codes) == (40, 18, 2, codes)
        assert (status.chunks, status.done_chunks, status.sealed) == (4, 2, True)
        assert abs(status.created_ms - int(steps.make_job().created_at.timestamp() * 1000)) < 60_000
        assert ledger.staged_files("job") == [*self.FILES]
        assert ledger.job("job").job_id == "job"
        assert [listed.job_id for listed in ledger.jobs()] == ["job"]
        claims = work_off(ledger)
        assert [(one.chunk_id, one.first_chunk, one.chunks) for one in claims] == [(1, 0, 3), (3, 3, 1)]
        assert {one.generation for one in claims} == {3}
        assert finish(ledger) == "completed_with_errors"
        assert ends(redis_client) == [("job", "3", "completed_with_errors")]

    @pytest.mark.parametrize("fingerprint", ["", "a" * 16])
    def test_the_model_of_its_rows_is_decided(self, ledger: Ledger, fingerprint: str) -> None:
        codes = {"timeout": 2}
        found = draft(4, staged=self.FILES, done=[0], next_chunk=1, ok=8, codes=codes)
        ledger.drafts.rebuild(
            steps.make_job(), begin(ledger), found, state=JobState.RUNNING, generation=0, items=40,
            ttl_seconds=1000, fingerprint_of_vectors=fingerprint,
        )  # fmt: skip

        assert ledger.pin_model("job", "b" * 16) == (fingerprint or "b" * 16)
        assert ledger.status("job").codes == codes

    def test_a_job_that_is_known_stays_as_it_is(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=4)
        claimed = claim(ledger)

        assert self.rebuild(ledger, JobState.SUBMITTING) == ("exists", JobState.RUNNING)

        assert ledger.staged_files("job") == [(0, 4)]
        assert complete(ledger, claimed) == "done"

    def test_of_two_the_one_that_began_last_counts_and_may_be_repeated(self, ledger: Ledger) -> None:
        first, last = begin(ledger), begin(ledger)

        answers = [self.rebuild(ledger, token=token) for token in (first, last, last)]

        assert answers == [("taken", None), self.REBUILT, self.REBUILT]

    @pytest.mark.parametrize("state", [JobState.COMPLETED, JobState.COMPLETED_WITH_ERRORS])
    def test_an_ended_job_stays_ended(
        self, ledger: Ledger, redis_client: redis.Redis, state: JobState
    ) -> None:
        assert self.rebuild(ledger, state, done=range(4), ok=40) == ("rebuilt", state)

        assert ends(redis_client) == []
        assert try_claim(ledger) is None
        assert ledger.claim_finish(steps.new_token(), 600) is None
        assert redis_client.pttl(keys.job("job")) <= 1_000_000
        assert ledger.status("job").finished_ms is not None

    def test_a_job_whose_parts_are_all_there_has_only_to_be_finished(self, ledger: Ledger) -> None:
        assert self.rebuild(ledger, done=range(4), ok=40) == ("rebuilt", JobState.FINISHING)
        assert finish(ledger) == "completed"

    def test_a_job_that_was_not_sealed_waits_for_its_submit(self, ledger: Ledger) -> None:
        self.rebuild(ledger, JobState.SUBMITTING, done=[0], next_chunk=1, ok=10)

        assert ledger.submit(steps.make_job()) == (False, JobState.SUBMITTING)
        assert ledger.staged_files("job") == [*self.FILES]
        assert ledger.stage("job", 4, 1, 10) == "staged"
        assert ledger.seal("job", 5, 50) == "sealed"
        assert [one.chunk_id for one in work_off(ledger)] == [1, 2, 3, 4]
