"""What a ledger promises about a claimed chunk: it is held, complete, released or lost, and counts once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clipfleet.contract.bottleneck import NO_METERS, Meters
from clipfleet.contract.jobs import JobState
from clipfleet.contract.webhooks import DecisionEvent
from clipfleet.ledger.jobs import MAX_FAILURES, MAX_LOSSES, Claim, Lease, LeaseReport, Ledger
from tests.promises.conftest import PassTime
from tests.support.ledger import add_job, claim, complete, lease_of, try_claim

LEASE_SECONDS = 600.0  # of `claim`
AGES = 10 * 86_400.0  # longer than an outage may last


def measured(ledger: Ledger, claimed: Claim, meters: Meters) -> None:
    ledger.complete(claimed, ok=10, failed=0, codes={}, work_seconds={}, meters=meters)


def lose(ledger: Ledger, pass_time: PassTime) -> None:
    """A worker dies, and the next reconcile notices."""
    pass_time(LEASE_SECONDS + 1)
    assert ledger.reconcile()[0] == 1


@pytest.fixture
def lost(ledger: Ledger, pass_time: PassTime) -> Claim:
    """The claim of a worker that has lost the first of two chunks."""
    add_job(ledger, chunks=2)
    lost = claim(ledger)
    lose(ledger, pass_time)
    return lost


class TestRenew:
    def test_a_renewed_lease_is_held_for_longer(self, ledger: Ledger, pass_time: PassTime) -> None:
        add_job(ledger)
        claimed = claim(ledger)
        pass_time(LEASE_SECONDS + 1)

        assert ledger.renew([lease_of(claimed)], 60) == ["held"]

        pass_time(55)
        assert ledger.reconcile()[0] == 0
        pass_time(10)
        assert ledger.reconcile()[0] == 1
        assert ledger.renew([lease_of(claimed)], 60) == ["lost"]

    def test_a_lease_that_another_worker_holds_now_stays_with_it(self, ledger: Ledger, lost: Claim) -> None:
        second = claim(ledger)

        assert ledger.renew([lease_of(lost), lease_of(second)], 60) == ["lost", "held"]

    def test_a_chunk_of_a_paused_job_is_still_held(self, ledger: Ledger) -> None:
        add_job(ledger)
        claimed = claim(ledger)
        ledger.pause("job", "for a while")

        assert ledger.renew([lease_of(claimed)], 60) == ["paused"]
        assert ledger.release(claimed, "drain", reason="") == "released"

    def test_many_leases_are_renewed_at_once_and_answered_in_order(self, ledger: Ledger) -> None:
        add_job(ledger, "a", chunks=2)
        first, second = claim(ledger), claim(ledger)
        add_job(ledger, "cancelled")
        cancelled = claim(ledger)
        ledger.cancel("cancelled", ttl_seconds=60)
        add_job(ledger, "failed")
        failed = claim(ledger)
        ledger.fail("failed", "no disk", ttl_seconds=60)
        complete(ledger, first)

        leases = [*map(lease_of, (cancelled, failed, second, first)), Lease("nope", "0", "token")]

        assert ledger.renew(leases, 60) == ["cancelled", "cancelled", "held", "lost", "lost"]
        assert ledger.renew([], 60) == []


def report(ledger: Ledger, claimed: Claim, settled: int, doing: str = "encode") -> None:
    ledger.report([LeaseReport(lease_of(claimed), settled, doing)])


def reported(ledger: Ledger) -> tuple[int, dict[str, int]]:
    status = ledger.status("job")
    return status.settled, dict(status.doing)


class TestReport:
    def test_what_is_reported_of_held_chunks_adds_up(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=3)
        first, second, third = claim(ledger), claim(ledger), claim(ledger)
        assert reported(ledger) == (0, {})

        ledger.report(
            [
                LeaseReport(lease_of(first), 3, "encode"),
                LeaseReport(lease_of(second), 9, "encode"),
                LeaseReport(lease_of(third), 0, "downloading 210 of 605 MB"),
            ]
        )
        report(ledger, first, 5)

        assert reported(ledger) == (14, {"encode": 2, "downloading 210 of 605 MB": 1})
        assert ledger.status("job").done == 14

    def test_the_counts_of_a_complete_chunk_replace_it(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=2)
        first, second = claim(ledger), claim(ledger)
        report(ledger, first, 9)
        report(ledger, second, 4)

        complete(ledger, first)
        report(ledger, first, 10)  # a late one

        assert reported(ledger) == (4, {"encode": 1})
        assert ledger.status("job").done == 14

    @pytest.mark.parametrize("end", ["release", "loss", "cancel", "failure", "a report of its end"])
    def test_it_vanishes_with_the_lease(self, ledger: Ledger, pass_time: PassTime, end: str) -> None:
        add_job(ledger, chunks=2)
        claimed = claim(ledger)
        report(ledger, claimed, 9)

        match end:
            case "release":
                ledger.release(claimed, "drain", reason="")
            case "loss":
                lose(ledger, pass_time)
            case "cancel":
                ledger.cancel("job", ttl_seconds=60)
            case "failure":
                ledger.fail("job", "no disk", ttl_seconds=60)
            case _:
                ledger.report([], [lease_of(claimed)])

        assert reported(ledger) == (0, {})
        if end in ("release", "loss"):
            again = claim(ledger)
            report(ledger, claimed, 8)  # the earlier owner has not noticed
            assert reported(ledger) == (0, {})
            report(ledger, again, 1)
            assert reported(ledger) == (1, {"encode": 1})

    def test_it_is_never_more_than_what_is_open(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=1)

        report(ledger, claim(ledger), 4000)

        assert reported(ledger)[0] == 10

    def test_an_unknown_job_is_ignored(self, ledger: Ledger) -> None:
        ledger.report([LeaseReport(Lease("nope", "0", "t"), 1, "encode")], [Lease("nope", "1", "t")])

        assert ledger.jobs() == []


class TestComplete:
    def test_its_rows_codes_and_seconds_add_up(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=3)
        codes = {"not_found": 2, "timeout": 1}

        ledger.complete(
            claim(ledger), ok=7, failed=3, codes=codes, work_seconds={"fetch": 1.5, "decode": 0.25}
        )
        ledger.complete(claim(ledger), ok=9, failed=1, codes={"timeout": 1}, work_seconds={"fetch": 1e6})
        ledger.complete(claim(ledger), ok=10**12, failed=0, codes={}, work_seconds={"write": 0.000001})

        status = ledger.status("job")
        assert (status.ok, status.failed, status.done_chunks) == (10**12 + 16, 4, 3)
        assert status.codes == {"not_found": 2, "timeout": 2}
        assert status.work_seconds == {"fetch": 1_000_001.5, "decode": 0.25, "write": 0.000001}

    def test_what_chunks_have_measured_adds_up_once(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=3)
        first, second, third = claim(ledger), claim(ledger), claim(ledger)

        measured(ledger, first, Meters({"write": 1.5, "on cpu, fp32": 0.25}))
        measured(ledger, first, Meters({"write": 1.5}))
        measured(ledger, second, Meters({"write": 1.0, "fetching": 7.0}))
        measured(ledger, third, NO_METERS)

        status = ledger.status("job")
        assert status.meters == Meters({"write": 2.5, "on cpu, fp32": 0.25, "fetching": 7.0})
        assert status.ran == 30

    def test_the_last_generation_that_announced_its_decisions_is_known(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=3)
        event = DecisionEvent("flag", "evt-1", "uploads", "{}")

        for decisions in ([event], [], None):
            ledger.complete(claim(ledger), ok=1, failed=0, codes={}, work_seconds={}, decisions=decisions)

        assert [ledger.decided("job", chunk) for chunk in range(4)] == [0, 0, -1, -1]
        assert ledger.decided_chunks("job") == {0: 0, 1: 0}
        assert ledger.decided_chunks("other") == {}

    def test_the_last_chunk_makes_a_sealed_job_finishing(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=2)
        first, second = claim(ledger), claim(ledger)

        assert [complete(ledger, second), complete(ledger, first)] == ["done", "finishing"]

        assert ledger.status("job").state is JobState.FINISHING

    def test_the_last_chunk_so_far_is_not_the_end_of_a_submit(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=1, sealed=False)

        assert complete(ledger, claim(ledger)) == "done"

        assert ledger.status("job").state is JobState.SUBMITTING

    def test_a_repetition_counts_once_and_is_no_progress(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=2)
        claimed = claim(ledger)
        assert complete(ledger, claimed) == "done"
        progress = ledger.last_progress("job")

        assert complete(ledger, claimed) == "already"

        assert ledger.status("job").ok == 10
        assert ledger.last_progress("job") == progress

    def test_a_worker_that_lost_its_lease_may_still_complete(self, ledger: Ledger, lost: Claim) -> None:
        """Its part is the one in place."""
        assert complete(ledger, lost) == "done"

        assert ledger.status("job").due_chunks == 0
        assert claim(ledger).chunk_id == 1

    def test_of_two_workers_with_a_chunk_the_second_is_late(self, ledger: Ledger, lost: Claim) -> None:
        second = claim(ledger)
        assert (second.chunk_id, second.losses) == (lost.chunk_id, 1)

        assert complete(ledger, lost) == "done"

        assert ledger.renew([lease_of(second)], 60) == ["lost"]
        assert ledger.release(second, "waits", reason="store away") == "not_held"
        assert complete(ledger, second) == "already"
        assert (ledger.status("job").ok, ledger.status("job").due_chunks) == (10, 0)

    def test_a_part_of_another_generation_does_not_count(self, ledger: Ledger, pass_time: PassTime) -> None:
        add_job(ledger, chunks=1)
        claimed = claim(ledger)

        assert complete(ledger, replace(claimed, generation=1)) == "stale"

        assert ledger.status("job").done_chunks == 0
        lose(ledger, pass_time)
        assert claim(ledger).chunk_id == claimed.chunk_id

    def test_a_part_of_a_cancelled_job_does_not_count(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=1)
        claimed = claim(ledger)
        ledger.cancel("job", ttl_seconds=60)

        assert complete(ledger, claimed) == "cancelled"

        assert ledger.status("job").ok == 0

    def test_a_chunk_that_was_never_claimed_cannot_be_complete(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=2)
        claimed = claim(ledger)

        assert complete(ledger, replace(claimed, chunk_id=1)) == "missing"
        assert complete(ledger, replace(claimed, job_id="nope")) == "missing"

    def test_chunks_that_are_held_when_a_job_is_paused_may_be_completed(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=2)
        first, second = claim(ledger), claim(ledger)
        ledger.pause("job", "for a while")

        assert [complete(ledger, first), complete(ledger, second)] == ["done", "finishing"]

    @pytest.mark.parametrize(("failed", "word"), [(200, "done"), (201, "stopped")])
    def test_more_failed_rows_than_allowed_stop_the_job(self, ledger: Ledger, failed: int, word: str) -> None:
        add_job(ledger, chunks=20, chunk_items=1000, max_error_rate=0.2)
        codes = {"timeout": 10, "not_found": failed - 80, "broken_image": 30, "rate_limited": 30, "empty": 10}

        answer = ledger.complete(claim(ledger), ok=1000 - failed, failed=failed, codes=codes, work_seconds={})

        assert answer == word
        assert ledger.status("job").has_stopped_itself == (word == "stopped")
        if word == "stopped":
            assert ledger.status("job").reason == (
                "201 of 1000 rows failed (20.1 %), more than the error rate of 0.2 that is allowed; failed "
                "so far: 121 not_found, 30 broken_image, 30 rate_limited; `clipfleet retry job` goes on, "
                "with --max-error-rate to allow more"
            )


class TestRelease:
    @pytest.mark.parametrize(
        ("kind", "expected"), [("failures", [30, 60, 120, 240, 300, 300]), ("waits", [30, 60, 60, 60])]
    )
    def test_back_offs_are_doubled(
        self, ledger: Ledger, pass_time: PassTime, kind: str, expected: list[float]
    ) -> None:
        add_job(ledger)
        claimed = claim(ledger)

        for back_off in expected:
            ledger.release(claimed, kind, reason="", first_back_off_seconds=30)
            pass_time(back_off - 5)
            assert try_claim(ledger) is None
            pass_time(5)
            claimed = claim(ledger)

    def test_a_drained_chunk_is_due_at_once_and_counts_as_a_wait(self, ledger: Ledger) -> None:
        add_job(ledger)
        claimed = claim(ledger)

        words = [ledger.release(claimed, "drain", reason="", first_back_off_seconds=100) for _ in range(2)]

        assert words == ["released", "not_held"]
        again = claim(ledger)
        assert (again.losses, again.failures, again.waits) == (0, 0, 1)

    def test_a_claim_says_how_often_and_why_it_came_back(self, ledger: Ledger, pass_time: PassTime) -> None:
        add_job(ledger)
        for kind in ("failures", "waits"):
            ledger.release(claim(ledger), kind, reason="")
            pass_time(5)
        claim(ledger)
        lose(ledger, pass_time)

        again = claim(ledger)

        assert (again.losses, again.failures, again.waits) == (1, 1, 1)

    def test_a_worker_without_the_lease_cannot_release_a_chunk(self, ledger: Ledger, lost: Claim) -> None:
        second = claim(ledger)

        assert ledger.release(lost, "drain", reason="") == "not_held"

        assert ledger.renew([lease_of(second)], 60) == ["held"]

    @pytest.mark.parametrize("return_by", ["release", "loss"])
    def test_a_pause_outlasts_a_return(self, ledger: Ledger, pass_time: PassTime, return_by: str) -> None:
        add_job(ledger)
        claimed = claim(ledger)
        ledger.pause("job", "for a while")
        if return_by == "release":
            ledger.release(claimed, "drain", reason="")
        else:
            lose(ledger, pass_time)
        assert try_claim(ledger) is None

        ledger.resume("job")

        assert claim(ledger).chunk_id == claimed.chunk_id

    @pytest.mark.parametrize(
        ("kind", "times"), [("failures", MAX_FAILURES), ("losses", MAX_LOSSES), ("waits", 20)]
    )
    def test_only_waits_exhaust_no_chunk(
        self, ledger: Ledger, pass_time: PassTime, kind: str, times: int
    ) -> None:
        add_job(ledger)
        for _ in range(times):
            claimed = claim(ledger)
            assert not claimed.is_exhausted
            if kind == "losses":
                lose(ledger, pass_time)
            else:
                ledger.release(claimed, kind, reason="store away", outage_seconds=AGES)
            pass_time(300)

        assert claim(ledger).is_exhausted == (kind != "waits")


class TestReconcile:
    def test_each_loss_of_a_chunk_doubles_its_back_off(self, ledger: Ledger, pass_time: PassTime) -> None:
        add_job(ledger)
        for losses, back_off in enumerate([0, 30, 60, 120], start=1):
            claimed = claim(ledger)
            pass_time(LEASE_SECONDS + 1)
            assert ledger.reconcile(first_back_off_seconds=30) == (1, 0)
            assert ledger.reconcile(first_back_off_seconds=30) == (0, 0)
            if back_off:
                pass_time(back_off - 5)
                assert try_claim(ledger) is None
                pass_time(5)
            claimed = claim(ledger)
            assert claimed.losses == losses
            ledger.release(claimed, "drain", reason="")

    def test_chunks_of_an_ended_job_are_not_lost(self, ledger: Ledger, pass_time: PassTime) -> None:
        add_job(ledger, chunks=3)
        claim(ledger)
        ledger.release(claim(ledger), "waits", reason="store away")

        ledger.cancel("job", ttl_seconds=6000)

        status = ledger.status("job")
        assert (status.leased_chunks, status.due_chunks) == (0, 0)
        pass_time(LEASE_SECONDS + 1)
        assert ledger.reconcile() == (0, 0)


class TestOutage:
    def test_one_that_lasts_too_long_pauses_the_job(self, ledger: Ledger, pass_time: PassTime) -> None:
        add_job(ledger, chunks=4)
        word = ledger.release(claim(ledger), "waits", reason="store away", outage_seconds=3600)
        assert (word, ledger.status("job").reason) == ("released", "store away")
        pass_time(3590)
        assert ledger.release(claim(ledger), "waits", reason="still away", outage_seconds=3600) == "released"
        pass_time(20)

        word = ledger.release(claim(ledger), "waits", reason="away since noon", outage_seconds=3600)

        assert word == "paused"
        assert ledger.status("job").state is JobState.PAUSED
        assert ledger.status("job").reason == "away since noon"
        assert try_claim(ledger) is None
        assert ledger.resume("job") == (True, JobState.RUNNING)
        assert ledger.status("job").reason == ""
        again = ledger.release(claim(ledger), "waits", reason="store away", outage_seconds=3600)
        assert again == "released"  # a new outage

    def test_a_job_paused_by_hand_keeps_that_reason(self, ledger: Ledger, pass_time: PassTime) -> None:
        add_job(ledger, chunks=2)
        ledger.release(claim(ledger), "waits", reason="store away")
        pass_time(AGES)
        claimed = claim(ledger)
        ledger.pause("job", "for a while")

        assert ledger.release(claimed, "waits", reason="store away") == "released"

        assert ledger.status("job").reason == "for a while"

    def test_a_chunk_that_comes_through_ends_it(self, ledger: Ledger, pass_time: PassTime) -> None:
        add_job(ledger, chunks=3)
        ledger.release(claim(ledger), "waits", reason="store away")
        pass_time(AGES)
        complete(ledger, claim(ledger))
        assert ledger.status("job").reason == ""

        assert ledger.release(claim(ledger), "waits", reason="store away") == "released"

    @pytest.mark.parametrize("kind", ["drain", "failures"])
    def test_a_drain_or_a_failure_is_none(self, ledger: Ledger, pass_time: PassTime, kind: str) -> None:
        add_job(ledger, chunks=2)
        ledger.release(claim(ledger), kind, reason="")
        pass_time(AGES)

        assert ledger.release(claim(ledger), "waits", reason="store away") == "released"


class TestPause:
    def test_a_paused_job_hands_out_nothing_until_it_is_resumed(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=2)
        assert ledger.pause("job", "for a while") == (True, JobState.PAUSED)
        assert try_claim(ledger) is None

        ledger.resume("job")

        assert claim(ledger).chunk_id == 0

    def test_a_resumed_submit_is_a_submit_again(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=1, sealed=False)
        ledger.pause("job", "for a while")

        assert ledger.resume("job") == (True, JobState.SUBMITTING)

    def test_resuming_ends_all_back_offs(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=2)
        for _ in range(2):
            ledger.release(claim(ledger), "waits", reason="store away", first_back_off_seconds=60)
        ledger.pause("job", "for a while")
        ledger.resume("job")

        assert {claim(ledger).chunk_id for _ in range(2)} == {0, 1}

    def test_pause_and_resume_change_nothing_where_there_is_nothing_to_change(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=1)

        assert ledger.resume("job") == (False, JobState.RUNNING)
        ledger.pause("job", "first reason")
        assert ledger.pause("job", "second reason") == (False, JobState.PAUSED)
        assert ledger.status("job").reason == "first reason"
        ledger.cancel("job", ttl_seconds=60)
        assert ledger.pause("job", "why") == ledger.resume("job") == (False, JobState.CANCELLED)
