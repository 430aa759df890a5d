"""What a ledger promises about jobs and claims: how a job gets to its workers.

What only Redis can show is in `tests/integration/ledger`.
`test_ledger_states.py` there mixes the calls at random.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from clipfleet.contract.jobs import JobState, Lane
from clipfleet.errors import JobConflictError, JobNotFoundError, QuotaExceededError
from clipfleet.ledger.jobs import Claim, Ledger, Quota
from clipfleet.ledger.memory import MemoryLedger
from tests.promises.conftest import PassTime
from tests.support import ledger as steps
from tests.support.ledger import add_finishing_job, add_job, claim, complete, make_job, new_token, try_claim

LANES = (Lane.HIGH, Lane.NORMAL, Lane.BULK)


def claimed_jobs(ledger: Ledger, count: int) -> list[str]:
    return [claim(ledger).job_id for _ in range(count)]


def test_a_ledger_in_memory_has_every_call_of_the_other() -> None:
    calls = {name for name in dir(Ledger) if not name.startswith("_")}

    assert calls <= set(vars(MemoryLedger))


class TestSubmit:
    def test_a_submitted_job_is_known(self, ledger: Ledger) -> None:
        job = make_job()

        assert ledger.submit(job) == (True, JobState.SUBMITTING)

        assert ledger.job("job") == job

    def test_the_same_submit_again_finds_the_job_as_it_is(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=2)

        assert ledger.submit(make_job()) == (False, JobState.RUNNING)

        assert ledger.status("job").chunks == 2

    def test_a_later_time_or_another_lane_do_not_make_another_job(self, ledger: Ledger) -> None:
        first = make_job(lane=Lane.BULK)
        ledger.submit(first)

        assert ledger.submit(make_job(lane=Lane.HIGH)) == (False, JobState.SUBMITTING)

        assert ledger.job("job") == first

    def test_an_id_of_another_job_is_a_conflict_that_names_the_difference(self, ledger: Ledger) -> None:
        ledger.submit(make_job())

        with pytest.raises(JobConflictError, match=r"differs in: model, top_k\. Choose another `job_id=`"):
            ledger.submit(make_job(model="other:weights", top_k=3))

    def test_a_quota_refuses_what_is_above_it(self, ledger: Ledger) -> None:
        ledger.quota = Quota(items=100)
        add_job(ledger, chunks=5, sealed=False)

        with pytest.raises(QuotaExceededError, match="101 items would wait"):
            ledger.stage("job", 5, 1, 51)
        assert ledger.staged_files("job") == [(0, 5)]

        assert ledger.stage("job", 5, 1, 50) == "staged"
        with pytest.raises(QuotaExceededError):
            ledger.submit(make_job("other"))

    @pytest.mark.parametrize("call", ["job", "status", "pause", "resume", "cancel"])
    def test_an_unknown_job_is_named_with_the_way_to_the_known_ones(self, ledger: Ledger, call: str) -> None:
        calls = {
            "job": lambda: ledger.job("nope"),
            "status": lambda: ledger.status("nope"),
            "pause": lambda: ledger.pause("nope", "why"),
            "resume": lambda: ledger.resume("nope"),
            "cancel": lambda: ledger.cancel("nope", ttl_seconds=60),
        }

        with pytest.raises(JobNotFoundError, match="'nope' is not known here: `clipfleet jobs`"):
            calls[call]()


class TestStage:
    def test_chunks_can_be_claimed_while_the_job_is_still_being_submitted(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=1, sealed=False)
        assert claim(ledger).chunk_id == 0
        assert try_claim(ledger) is None

        ledger.stage("job", 1, 2, 20)

        assert claim(ledger).chunk_id == 1
        assert ledger.status("job").state is JobState.SUBMITTING

    def test_a_repeated_file_is_known_and_not_counted_again(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=2, sealed=False)

        assert ledger.stage("job", 0, 2, 20) == "known"

        assert (ledger.status("job").chunks, ledger.status("job").total) == (2, 20)

    @pytest.mark.parametrize("first_chunk", [0, 1, 3])
    def test_a_file_that_does_not_follow_the_last_is_a_gap(self, ledger: Ledger, first_chunk: int) -> None:
        add_job(ledger, chunks=2, sealed=False)

        assert ledger.stage("job", first_chunk, 1, 10) == "gap"

    @pytest.mark.parametrize("obstacle", ["seal", "seal and pause", "cancel"])
    def test_a_sealed_or_ended_job_takes_no_file_but_its_own(self, ledger: Ledger, obstacle: str) -> None:
        add_job(ledger, chunks=1, sealed=obstacle != "cancel")
        if obstacle == "cancel":
            ledger.cancel("job", ttl_seconds=60)
        elif obstacle != "seal":
            ledger.pause("job", "for a while")

        assert ledger.stage("job", 1, 1, 10) == "refused"
        assert ledger.stage("job", 0, 1, 10) == "known"
        assert ledger.stage("nope", 0, 1, 10) == "refused"

    def test_a_paused_job_takes_files_and_hands_them_out_after_the_pause(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=0, sealed=False)
        ledger.pause("job", "for a while")

        assert ledger.stage("job", 0, 1, 10) == "staged"
        assert try_claim(ledger) is None
        ledger.resume("job")

        assert claim(ledger).chunk_id == 0

    def test_staged_files_are_listed_in_order_so_that_a_submit_can_resume(self, ledger: Ledger) -> None:
        files = [(0, 9), (9, 2), (11, 256)]
        add_job(ledger, chunks=0, sealed=False)
        for first, chunks in files:
            ledger.stage("job", first, chunks, chunks)

        assert ledger.staged_files("job") == files


class TestSeal:
    def test_a_seal_ends_the_source_and_the_job_runs(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=2, sealed=False)

        assert ledger.seal("job", 2, 20, "a-sum") == "sealed"

        status = ledger.status("job")
        assert (status.state, status.sealed, status.source_sum) == (JobState.RUNNING, True, "a-sum")

    def test_a_seal_can_be_repeated_even_after_the_end(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=1)
        assert ledger.seal("job", 1, 10) == "sealed"
        steps.work_off(ledger)
        ledger.finish(steps.claim_finish(ledger), ttl_seconds=60)

        assert ledger.seal("job", 1, 10) == "sealed"

        assert ledger.status("job").state is JobState.COMPLETED

    @pytest.mark.parametrize(("chunks", "items"), [(3, 20), (2, 21)])
    def test_a_seal_with_other_numbers_is_a_mismatch(self, ledger: Ledger, chunks: int, items: int) -> None:
        add_job(ledger, chunks=2, sealed=False)

        assert ledger.seal("job", chunks, items) == "mismatch"

        assert not ledger.status("job").sealed

    def test_a_seal_of_a_cancelled_or_unknown_job_is_refused(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=1, sealed=False)
        ledger.cancel("job", ttl_seconds=60)

        assert ledger.seal("job", 1, 10) == ledger.seal("nope", 1, 10) == "refused"

    @pytest.mark.parametrize("chunks", [0, 2])
    def test_a_seal_after_the_last_chunk_makes_the_job_finishing(self, ledger: Ledger, chunks: int) -> None:
        add_job(ledger, chunks=chunks, sealed=False)
        steps.work_off(ledger)

        ledger.seal("job", chunks, 10 * chunks)

        assert ledger.status("job").state is JobState.FINISHING

    def test_a_seal_does_not_end_a_pause(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=1, sealed=False)
        ledger.pause("job", "for a while")

        ledger.seal("job", 1, 10)

        assert ledger.status("job").state is JobState.PAUSED
        assert ledger.resume("job") == (True, JobState.RUNNING)


class TestClaim:
    def test_a_claim_has_all_that_a_worker_needs_to_find_the_items(self, ledger: Ledger) -> None:
        job = make_job()
        ledger.submit(job, traceparent="00-trace-span-01")
        ledger.stage("job", 0, 3, 30)
        ledger.stage("job", 3, 2, 20)
        ledger.submit(job, traceparent="00-of-the-submit-that-resumed-01")
        first_file = [claim(ledger) for _ in range(3)]

        found = claim(ledger, token="delivery-1")

        assert [other.first_chunk for other in first_file] == [0, 0, 0]
        assert found == Claim(
            token="delivery-1", job_id="job", chunk_id=3, generation=0, losses=0, failures=0, waits=0,
            job_fingerprint=job.fingerprint, first_chunk=3, chunks=2, more=True, chunk_size=512,
            job_created_ms=ledger.status("job").created_ms, traceparent="00-trace-span-01",
        )  # fmt: skip
        assert replace(claim(ledger, token="delivery-1"), more=True) == found

    def test_each_claim_gets_a_chunk_of_its_own(self, ledger: Ledger) -> None:
        add_job(ledger, chunks=3)

        assert [claim(ledger).chunk_id for _ in range(3)] == [0, 1, 2]

        assert try_claim(ledger) is None

    def test_the_same_token_gets_its_chunk_and_a_whole_lease(
        self, ledger: Ledger, pass_time: PassTime
    ) -> None:
        add_job(ledger, chunks=3)
        first = claim(ledger, token="delivery-1")
        pass_time(601)

        again = claim(ledger, token="delivery-1")

        assert again.chunk_id == first.chunk_id
        assert ledger.status("job").leased_chunks == 1
        assert ledger.reconcile()[0] == 0

    @pytest.mark.parametrize("end", ["complete", "lost"])
    def test_a_token_gets_no_second_chunk(self, ledger: Ledger, pass_time: PassTime, end: str) -> None:
        add_job(ledger, chunks=2)
        claimed = claim(ledger, token="delivery-1")
        if end == "complete":
            complete(ledger, claimed)
        pass_time(601)
        ledger.reconcile()

        assert try_claim(ledger, token="delivery-1") is None

    def test_a_token_that_found_nothing_may_find_something_later(self, ledger: Ledger) -> None:
        assert try_claim(ledger, token="delivery-1") is None
        add_job(ledger)

        assert try_claim(ledger, token="delivery-1") is not None

    def test_a_claim_says_whether_work_remains_in_its_job(self, ledger: Ledger, pass_time: PassTime) -> None:
        add_job(ledger, chunks=2)

        assert [claim(ledger).more, claim(ledger).more] == [True, False]

        pass_time(601)
        ledger.reconcile()
        assert [claim(ledger).more, claim(ledger).more] == [True, False]

    def test_a_claim_says_whether_work_remains_in_other_jobs(self, ledger: Ledger) -> None:
        add_job(ledger, "first", chunks=1)
        add_job(ledger, "second", chunks=1, lane=Lane.BULK)

        assert [claim(ledger).more, claim(ledger, lanes=[Lane.HIGH, Lane.BULK]).more] == [True, False]

    def test_the_last_claim_of_small_jobs_says_that_nothing_remains(self, ledger: Ledger) -> None:
        for name in ("first", "second", "third"):
            add_job(ledger, name, chunks=1)

        assert [claim(ledger).more for _ in range(3)] == [True, True, False]

    def test_a_chunk_that_backs_off_is_claimed_although_all_others_are_leased(
        self, ledger: Ledger, pass_time: PassTime
    ) -> None:
        add_job(ledger, chunks=2)
        first = claim(ledger)
        ledger.release(first, "failures", reason="", first_back_off_seconds=10)
        claim(ledger)
        pass_time(20)

        assert claim(ledger).chunk_id == first.chunk_id

    def test_a_chunk_that_came_back_is_claimed_first(self, ledger: Ledger, pass_time: PassTime) -> None:
        add_job(ledger, chunks=3)
        claim(ledger)
        pass_time(601)
        ledger.reconcile()

        assert [claim(ledger).chunk_id for _ in range(3)] == [0, 1, 2]


class TestEnds:
    def test_every_end_is_told_once(self, ledger: Ledger) -> None:
        last = ledger.last_end()
        assert ledger.wait_for_ends(last, 0.01) == (last, [])

        for name in ("first", "second"):
            add_job(ledger, name)
            ledger.cancel(name, ttl_seconds=60)

        later, ended = ledger.wait_for_ends(last, 5)
        assert ended == ["first", "second"]
        assert later == ledger.last_end()
        assert ledger.wait_for_ends(later, 0.01) == (later, [])


class TestOrder:
    def test_high_comes_before_normal_before_bulk(self, ledger: Ledger) -> None:
        for lane in reversed(LANES):
            add_job(ledger, lane.value, chunks=2, lane=lane)

        assert claimed_jobs(ledger, 6) == ["high", "high", "normal", "normal", "bulk", "bulk"]

    def test_a_worker_gets_only_the_lanes_it_asks_for(self, ledger: Ledger) -> None:
        add_job(ledger, "bulk", lane=Lane.BULK)

        assert try_claim(ledger, lanes=[Lane.HIGH, Lane.NORMAL]) is None

    @pytest.mark.parametrize(
        ("lanes", "lowest_then_next"), [([Lane.HIGH, Lane.BULK], ["bulk"] * 2), (LANES, ["bulk", "normal"])]
    )
    def test_every_eighth_claim_starts_from_the_bottom_so_that_no_lane_starves(
        self, ledger: Ledger, lanes: list[Lane], lowest_then_next: list[str]
    ) -> None:
        for _ in range(7):
            assert try_claim(ledger) is None  # a claim that finds nothing does not count
        for lane in lanes:
            add_job(ledger, lane.value, chunks=40, lane=lane)

        order = claimed_jobs(ledger, 32)

        assert order == [name for low in lowest_then_next for name in (*["high"] * 7, low)] * 2

    def test_the_jobs_of_a_lane_take_turns(self, ledger: Ledger) -> None:
        for name in ("a", "b", "c"):
            add_job(ledger, name, chunks=2)

        assert claimed_jobs(ledger, 6) == ["a", "b", "c", "a", "b", "c"]

    def test_a_job_that_returns_to_its_lane_keeps_its_turn(self, ledger: Ledger, pass_time: PassTime) -> None:
        add_job(ledger, "a", chunks=1)
        add_job(ledger, "b", chunks=9)
        claim(ledger)
        pass_time(601)
        assert claimed_jobs(ledger, 3) == ["b", "b", "b"]  # "a" has nothing left

        assert ledger.reconcile()[0] == 1

        assert claimed_jobs(ledger, 2) == ["a", "b"]

    def test_a_job_that_returns_does_not_jump_the_queue(self, ledger: Ledger, pass_time: PassTime) -> None:
        add_job(ledger, "older", chunks=2)
        complete(ledger, claim(ledger))
        add_job(ledger, "later", chunks=1)
        claim(ledger)
        assert try_claim(ledger, excluded_jobs=["older"]) is None  # "later" has nothing left
        pass_time(601)

        assert ledger.reconcile()[0] == 1

        assert claimed_jobs(ledger, 2) == ["older", "later"]

    def test_jobs_of_different_models_take_turns_too(self, ledger: Ledger) -> None:
        add_job(ledger, "a", chunks=2, model="one:x")
        add_job(ledger, "b", chunks=2, model="two:x")

        order = [claim(ledger, models=["one:x", "two:x"]).job_id for _ in range(4)]

        assert sorted(order[:2]) == sorted(order[2:]) == ["a", "b"]

    def test_a_worker_gets_only_chunks_for_models_it_serves(self, ledger: Ledger) -> None:
        add_job(ledger, "a", model="one:x")
        add_job(ledger, "b", model="two:x")

        assert claim(ledger, models=["two:x"]).job_id == "b"
        assert try_claim(ledger, models=["two:x"]) is None
        assert try_claim(ledger, models=["three:x"]) is None

    def test_a_job_that_is_excluded_is_not_taken_from_others(self, ledger: Ledger) -> None:
        add_job(ledger, "a", chunks=2)
        add_job(ledger, "b", chunks=1)

        assert claim(ledger, excluded_jobs=["a"]).job_id == "b"
        assert try_claim(ledger, excluded_jobs=["a"]) is None
        assert claim(ledger).job_id == "a"

    @pytest.mark.parametrize("obstacle", ["back-off", "excluded"])
    def test_many_jobs_without_work_do_not_hide_the_one_with_work(
        self, ledger: Ledger, obstacle: str
    ) -> None:
        names = [f"other{number:02d}" for number in range(70)]
        for name in names:
            add_job(ledger, name)
            if obstacle == "back-off":
                ledger.release(claim(ledger), "failures", reason="", first_back_off_seconds=100)
        add_job(ledger, "with-work")

        assert claim(ledger, excluded_jobs=names if obstacle == "excluded" else []).job_id == "with-work"
        assert try_claim(ledger, excluded_jobs=names) is None

    def test_the_job_that_has_waited_longest_comes_first_whichever_its_model(self, ledger: Ledger) -> None:
        for name in ("empty1", "empty2"):
            add_job(ledger, name, model="one:x")
            claim(ledger, models=["one:x"])
        for name, model in (("b", "two:x"), ("a", "one:x")):
            add_job(ledger, name, chunks=2, model=model)
            claim(ledger, models=[model])

        assert claim(ledger, models=["one:x", "two:x"]).job_id == "b"


class TestClaimFinish:
    def test_one_worker_at_a_time_finishes_a_job(self, ledger: Ledger) -> None:
        add_finishing_job(ledger)
        assert ledger.reconcile() == (0, 1)

        found = steps.claim_finish(ledger)

        assert (found.job_id, found.generation) == ("job", 0)
        assert (found.job_fingerprint, found.job_created_ms) == (
            make_job().fingerprint,
            ledger.status("job").created_ms,
        )
        assert ledger.claim_finish(new_token(), 600) is None
        assert ledger.reconcile() == (0, 0)

    def test_the_same_token_gets_the_same_job_again(self, ledger: Ledger) -> None:
        add_finishing_job(ledger, "a")
        add_finishing_job(ledger, "b")
        first = ledger.claim_finish("delivery-1", 600)

        assert ledger.claim_finish("delivery-1", 600) == first

    def test_one_token_may_claim_a_chunk_and_a_job_to_finish(self, ledger: Ledger) -> None:
        add_job(ledger, "a", chunks=1)
        complete(ledger, claim(ledger, token="delivery-1"))
        assert ledger.claim_finish("delivery-1", 600) is not None
        assert try_claim(ledger, token="delivery-1") is None

        add_finishing_job(ledger, "b")
        ledger.claim_finish("delivery-2", 600)
        add_job(ledger, "c")
        assert claim(ledger, token="delivery-2").job_id == "c"

    def test_excluded_jobs_are_left_to_others_and_hide_none(self, ledger: Ledger) -> None:
        excluded = [f"excluded{number:02d}" for number in range(70)]
        for name in [*excluded, "good"]:
            add_finishing_job(ledger, name)

        found = ledger.claim_finish(new_token(), 600, excluded)

        assert found is not None
        assert found.job_id == "good"
        assert ledger.claim_finish(new_token(), 600, excluded) is None
        assert ledger.claim_finish(new_token(), 600) is not None


class TestModelsOfVectors:
    def test_the_first_worker_decides(self, ledger: Ledger) -> None:
        add_job(ledger, "a")
        add_job(ledger, "b")

        assert (ledger.pin_model("a"), ledger.pin_model("a", "")) == ("", "")
        assert [ledger.pin_model("a", one) for one in ("0" * 16, "f" * 16)] == ["0" * 16] * 2
        assert ledger.pin_model("b", "f" * 16) == ledger.pin_model("b") == "f" * 16

    def test_an_unknown_job_has_none(self, ledger: Ledger) -> None:
        assert ledger.pin_model("nobody", "0" * 16) == ""
