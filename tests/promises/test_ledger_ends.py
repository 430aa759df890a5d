"""What a ledger promises about the end of a job, and about what it shows of jobs and workers."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from clipfleet.contract.brief import JobBrief
from clipfleet.contract.jobs import JobState, Lane
from clipfleet.ledger.jobs import Ledger, WorkerFacts
from clipfleet.ledger.values import LaneBacklog
from tests.promises.conftest import PassTime
from tests.support import ledger as steps
from tests.support.ledger import (
    add_finishing_job,
    add_job,
    claim,
    claim_finish,
    complete,
    lease_of,
    new_token,
)

OPEN = [JobState.SUBMITTING, JobState.RUNNING, JobState.PAUSED]
OVER = [JobState.COMPLETED, JobState.COMPLETED_WITH_ERRORS, JobState.CANCELLED, JobState.FAILED]


class TestFinish:
    @pytest.mark.parametrize(("failed", "state"), [(0, "completed"), (3, "completed_with_errors")])
    def test_a_job_is_completed_with_or_without_errors(self, ledger: Ledger, failed: int, state: str) -> None:
        add_finishing_job(ledger, failed=failed)
        before, early_end = ledger.status("job"), ledger.last_early_end()
        assert before.finished_ms is None

        assert ledger.finish(claim_finish(ledger), ttl_seconds=60) == state

        assert ledger.last_early_end() == early_end
        status = ledger.status("job")
        assert (status.state, status.created_ms) == (state, before.created_ms)
        assert status.finished_ms is not None
        assert status.created_ms <= before.asked_ms <= status.finished_ms <= status.asked_ms

    def test_a_claim_that_expired_is_taken_by_another(self, ledger: Ledger, pass_time: PassTime) -> None:
        add_finishing_job(ledger)
        first = claim_finish(ledger)
        pass_time(601)

        second = claim_finish(ledger)

        assert second.job_id == first.job_id
        assert ledger.claim_finish(first.token, 600) is None
        ledger.postpone_finish(first, 0)
        assert ledger.renew([lease_of(first), lease_of(second)], 60) == ["lost", "held"]
        assert ledger.claim_finish(new_token(), 600) is None
        words = [ledger.finish(claimed, ttl_seconds=60) for claimed in (first, second, first)]
        assert words == ["completed"] * 3

    def test_a_renewed_claim_is_held_for_longer(self, ledger: Ledger, pass_time: PassTime) -> None:
        add_finishing_job(ledger)
        claimed = claim_finish(ledger)
        pass_time(601)

        assert ledger.renew([lease_of(claimed)], 60) == ["held"]

        assert ledger.claim_finish(new_token(), 600) is None

    def test_a_job_that_is_open_of_another_generation_or_unknown_is_not_finished(
        self, ledger: Ledger
    ) -> None:
        add_finishing_job(ledger)
        claimed = claim_finish(ledger)
        add_job(ledger, "open")

        assert ledger.finish(replace(claimed, job_id="open"), ttl_seconds=60) == "stale"
        assert ledger.finish(replace(claimed, generation=1), ttl_seconds=60) == "stale"
        assert ledger.finish(replace(claimed, job_id="nope"), ttl_seconds=60) == "missing"


class TestPostpone:
    def test_it_is_claimed_after_the_delay_and_says_why(self, ledger: Ledger, pass_time: PassTime) -> None:
        add_finishing_job(ledger)
        assert ledger.postpone_finish(claim_finish(ledger), 100, "the store is away") == "postponed"
        assert ledger.status("job").reason == "the store is away"
        pass_time(95)
        assert ledger.claim_finish(new_token(), 600) is None
        pass_time(10)

        ledger.finish(claim_finish(ledger), ttl_seconds=60)

        assert ledger.status("job").reason == ""

    def test_an_outage_that_lasts_too_long_pauses_the_job(self, ledger: Ledger, pass_time: PassTime) -> None:
        add_finishing_job(ledger)
        ledger.postpone_finish(claim_finish(ledger), 0, "the store is away", outage_seconds=3600)
        pass_time(3601)

        word = ledger.postpone_finish(claim_finish(ledger), 0, "still away", outage_seconds=3600)

        assert word == "paused"
        assert (ledger.status("job").state, ledger.status("job").reason) == (JobState.PAUSED, "still away")
        assert ledger.claim_finish(new_token(), 600) is None
        assert steps.try_claim(ledger) is None
        assert ledger.resume("job") == (True, JobState.FINISHING)
        assert ledger.finish(claim_finish(ledger), ttl_seconds=60) == "completed"

    def test_lasting_trouble_fails_the_job_in_the_end(self, ledger: Ledger, pass_time: PassTime) -> None:
        add_finishing_job(ledger)

        def postpone(reason: str) -> str:
            return ledger.postpone_finish(
                claim_finish(ledger), 0, reason, outage_seconds=3600, ttl_seconds=60, is_lasting=True
            )

        assert postpone("the store is away") == "postponed"
        pass_time(3601)
        assert postpone("") == "postponed"  # a worker drains, nothing else
        assert postpone("part 0 is gone") == "failed"

        status = ledger.status("job")
        assert (status.state, status.reason) == (JobState.FAILED, "part 0 is gone")
        assert ledger.claim_finish(new_token(), 600) is None


class TestEarlyEnd:
    @pytest.mark.parametrize("state", OPEN)
    def test_a_job_with_open_chunks_can_be_cancelled(self, ledger: Ledger, state: JobState) -> None:
        steps.bring_into(ledger, state)
        before = ledger.last_early_end()

        assert ledger.cancel("job", ttl_seconds=60) == (True, JobState.CANCELLED)

        assert steps.try_claim(ledger) is None
        assert ledger.last_early_end() != before
        assert not ledger.status("job").has_stopped_itself

    @pytest.mark.parametrize("state", [JobState.FINISHING, *OVER])
    def test_a_finishing_or_ended_job_cannot_be_cancelled(self, ledger: Ledger, state: JobState) -> None:
        steps.bring_into(ledger, state)
        before = ledger.last_early_end()

        assert ledger.cancel("job", ttl_seconds=60) == (False, state)

        assert ledger.last_early_end() == before

    @pytest.mark.parametrize("state", [*OPEN, JobState.FINISHING])
    def test_a_job_that_cannot_be_written_fails_with_the_reason(
        self, ledger: Ledger, state: JobState
    ) -> None:
        steps.bring_into(ledger, state)

        for _ in range(2):
            ledger.fail("job", "no disk", ttl_seconds=60)

        assert (ledger.status("job").state, ledger.status("job").reason) == (JobState.FAILED, "no disk")
        assert ledger.reconcile() == (0, 0)

    def test_one_without_the_lease_cannot_fail_the_job(self, ledger: Ledger, pass_time: PassTime) -> None:
        add_job(ledger)
        lost = claim(ledger)
        pass_time(601)
        ledger.reconcile()
        ledger.fail("job", "no disk", ttl_seconds=60, holder=lost)
        assert ledger.status("job").state is JobState.RUNNING

        ledger.fail("job", "no disk", ttl_seconds=60, holder=claim(ledger))

        assert ledger.status("job").state is JobState.FAILED

    def test_a_job_that_failed_while_it_was_finished_stays_failed(self, ledger: Ledger) -> None:
        add_finishing_job(ledger)
        claimed = claim_finish(ledger)
        ledger.fail("job", "no disk", ttl_seconds=60)

        assert ledger.renew([lease_of(claimed)], 60) == ["cancelled"]
        assert ledger.finish(claimed, ttl_seconds=60) == "failed"

    def test_holders_are_writers_until_they_have_stopped(self, ledger: Ledger, pass_time: PassTime) -> None:
        add_job(ledger, chunks=3)
        first, second, third = claim(ledger), claim(ledger), claim(ledger)
        assert ledger.writers("job", 100)[0] == 0
        ledger.cancel("job", ttl_seconds=6000)

        ledger.release(first, "drain", reason="cancelled")
        count, seconds = ledger.writers("job", 100)
        assert (count, seconds) == (2, pytest.approx(700, abs=5))
        steps.complete(ledger, second)
        assert ledger.writers("job", 100)[0] == 1
        pass_time(650)
        assert ledger.writers("job", 100)[0] == 1
        pass_time(55)
        assert ledger.writers("job", 100) == (0, 0)
        assert ledger.renew([lease_of(third)], 600) == ["cancelled"]  # it is inside its write
        assert ledger.writers("job", 100)[0] == 1
        ledger.fail("job", "no disk", ttl_seconds=6000, holder=third)
        assert ledger.writers("job", 100)[0] == 0
        assert ledger.status("job").state is JobState.CANCELLED


def test_a_status_says_where_every_chunk_is(ledger: Ledger) -> None:
    add_job(ledger, chunks=5, lane=Lane.BULK)
    done, _leased, released = claim(ledger), claim(ledger), claim(ledger)
    steps.complete(ledger, done, ok=8, failed=2)
    ledger.release(released, "waits", reason="store away")

    status = ledger.status("job")

    assert (status.state, status.lane, status.model) == (JobState.RUNNING, Lane.BULK, "demo")
    assert (status.chunks, status.done_chunks, status.leased_chunks, status.due_chunks) == (5, 1, 1, 1)
    assert (status.total, status.ok, status.failed, status.open) == (50, 8, 2, 40)
    assert [(one.job_id, one.brief) for one in ledger.jobs()] == [
        ("job", JobBrief("embed", "/images", "/out", ""))
    ]


def test_unfinished_jobs_are_listed_newest_first_and_others_on_request(
    ledger: Ledger, pass_time: PassTime
) -> None:
    for number in range(6):
        add_job(ledger, f"job-{number}", sealed=number != 4)
        pass_time(1)
    ledger.pause("job-3", "by request")
    ledger.cancel("job-2", ttl_seconds=600)
    steps.complete(ledger, claim(ledger), ok=10)  # of job-0, which is finishing

    all_jobs, three = ledger.unfinished(), ledger.unfinished(3, also=["job-5", "job-2", "job-0", "nobody"])

    assert [(one.job_id, one.state) for one in all_jobs.jobs] == [
        ("job-5", JobState.RUNNING), ("job-4", JobState.SUBMITTING), ("job-3", JobState.PAUSED),
        ("job-1", JobState.RUNNING), ("job-0", JobState.FINISHING),
    ]  # fmt: skip
    assert all_jobs.left_out == 0
    assert [one.job_id for one in three.jobs[:3]] == ["job-5", "job-4", "job-3"]
    assert {one.job_id: one.state for one in three.jobs[3:]} == {
        "job-2": JobState.CANCELLED, "job-0": JobState.FINISHING,
    }  # fmt: skip
    assert three.left_out == 2
    assert three.jobs[0].brief == JobBrief("embed", "/images", "/out", "")


def test_a_retried_job_is_unfinished_again(ledger: Ledger) -> None:
    add_job(ledger)
    steps.complete(ledger, claim(ledger), ok=8, failed=2)
    ledger.finish(steps.claim_finish(ledger), ttl_seconds=600)
    assert ledger.unfinished().jobs == ()

    ledger.drafts.begin("job", "token")
    ledger.drafts.retry("job", "token", steps.draft(1), generation=1)

    assert [one.job_id for one in ledger.unfinished().jobs] == ["job"]


def test_workers_starve_while_all_that_was_submitted_is_claimed(ledger: Ledger, pass_time: PassTime) -> None:
    def starved_seconds() -> int:
        return round(ledger.status("job").starved_ms / 1000)

    add_job(ledger, chunks=2, sealed=False)
    claim(ledger)
    pass_time(20)
    assert starved_seconds() == 0
    claim(ledger)
    pass_time(20)
    assert starved_seconds() == 20
    ledger.stage("job", 2, 1, 10)
    pass_time(20)
    assert starved_seconds() == 20
    claim(ledger)
    pass_time(10)
    assert ledger.seal("job", 3, 30) == "sealed"
    pass_time(20)
    assert starved_seconds() == 30


class TestWorkers:
    def test_a_worker_is_known_by_its_heartbeat(self, ledger: Ledger, pass_time: PassTime) -> None:
        quiet = WorkerFacts("quiet", "host", 7, ("demo", "one:x"), "cuda", held_chunks=3, up_seconds=1.5)
        lively = WorkerFacts("lively", "host", 8, ("demo",))
        ledger.heartbeat(quiet)
        ledger.heartbeat(quiet)
        assert ledger.workers() == [quiet]
        assert [quiet.serves("one:x"), quiet.serves("two:x")] == [True, False]

        pass_time(45)
        ledger.heartbeat(lively)

        assert ledger.workers(silence_seconds=30) == [lively]
        ledger.reconcile(worker_silence_seconds=60)
        assert ledger.workers(silence_seconds=50) == [quiet, lively]
        assert [facts.silent_seconds // 45 for facts in ledger.workers(silence_seconds=50)] == [1, 0]
        ledger.reconcile(worker_silence_seconds=40)
        assert ledger.workers(silence_seconds=50) == [lively]

    def test_one_that_has_said_farewell_is_removed_at_once(self, ledger: Ledger) -> None:
        for worker_id in ("gone", "here"):
            ledger.heartbeat(WorkerFacts(worker_id, "host", 7, ("demo",)))

        ledger.farewell("gone")
        ledger.farewell("gone")

        assert [facts.worker_id for facts in ledger.workers()] == ["here"]


class TestBacklog:
    def test_it_counts_pending_and_running_work(self, ledger: Ledger) -> None:
        add_job(ledger, "first", chunks=3)
        add_job(ledger, "second", chunks=2, lane=Lane.HIGH)
        add_job(ledger, "paused", chunks=7)
        ledger.pause("paused", "by hand")
        complete(ledger, claim(ledger, lanes=[Lane.NORMAL]), ok=8, failed=2)
        claim(ledger, lanes=[Lane.NORMAL])

        backlog = ledger.backlog()

        assert backlog.lanes == {
            Lane.HIGH: LaneBacklog(queued_chunks=2, open_items=20),
            Lane.NORMAL: LaneBacklog(queued_chunks=1, leased_chunks=1, done_chunks=1, open_items=20),
            Lane.BULK: LaneBacklog(),
        }
        assert {state: count for state, count in backlog.jobs.items() if count} == {
            JobState.RUNNING: 2,
            JobState.PAUSED: 1,
        }
        assert (backlog.outage_seconds, backlog.jobs_left_out) == (0, 0)

    def test_that_of_nothing_is_empty(self, ledger: Ledger) -> None:
        backlog = ledger.backlog()

        assert set(backlog.lanes.values()) == {LaneBacklog()}
        assert set(backlog.jobs.values()) == {0}
        assert (backlog.oldest_due_seconds, backlog.outage_seconds) == (0, 0)

    def test_it_has_the_age_of_a_chunk_that_was_released_and_of_an_outage(
        self, ledger: Ledger, pass_time: PassTime
    ) -> None:
        add_job(ledger, chunks=2)
        ledger.release(claim(ledger), "waits", reason="store away")
        pass_time(600)

        backlog = ledger.backlog()

        assert 500 < backlog.oldest_due_seconds <= 600.5
        assert backlog.outage_seconds == pytest.approx(600, abs=60)
        assert backlog.lanes[Lane.NORMAL].queued_chunks == 2


class TestProgress:
    def test_a_waiting_caller_is_woken_by_the_next_chunk(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=2)
        seen = ledger.last_progress("job")
        news: list[str] = []
        thread = threading.Thread(target=lambda: news.append(ledger.wait_for_progress("job", seen, 5)))

        thread.start()
        steps.complete(ledger, claim(ledger))
        thread.join(timeout=10)

        assert news == [ledger.last_progress("job")]
        assert news != [seen]

    def test_without_news_the_same_mark_comes_back(self, ledger: Ledger) -> None:
        add_job(ledger)
        mark = ledger.last_progress("job")

        assert ledger.wait_for_progress("job", mark, 0.05) == mark
        assert ledger.wait_for_progress("job", "0-7", 0) == "0-7"

    def test_several_news_at_once_give_the_last_mark(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=3)
        first = ledger.last_progress("job")
        steps.work_off(ledger)

        assert ledger.wait_for_progress("job", first, 5) == ledger.last_progress("job") != first

    @pytest.mark.parametrize("end", ["finish", "cancel", "fail"])
    def test_the_end_of_a_job_is_progress_too(self, ledger: Ledger, end: str) -> None:
        add_finishing_job(ledger) if end == "finish" else add_job(ledger)
        before = ledger.last_progress("job")
        if end == "finish":
            ledger.finish(claim_finish(ledger), ttl_seconds=60)
        elif end == "cancel":
            ledger.cancel("job", ttl_seconds=60)
        else:
            ledger.fail("job", "no disk", ttl_seconds=60)

        assert ledger.last_progress("job") != before
