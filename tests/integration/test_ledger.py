"""The ledger on a real server, one idea per test: read from top to bottom, this is what it promises.

`test_ledger_states.py` mixes the same steps at random.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from clipfleet.contract.bottleneck import NO_METERS, Meters
from clipfleet.contract.jobs import JobState, Lane
from clipfleet.errors import JobConflictError, JobNotFoundError, RedisUnavailableError
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import FINISH, MAX_FAILURES, MAX_LOSSES, Claim, Lease, Ledger, WorkerFacts
from clipfleet.ledger.values import LaneBacklog
from clipfleet.redis.connection import connect
from clipfleet_worker.machine.embedded.valkey import EmbeddedValkey
from tests.support.ledger import (
    DAY_MS,
    add_job,
    claim,
    claim_finish,
    complete,
    keys_without_ttl,
    let_back_offs_pass,
    let_finish_claims_expire,
    let_leases_expire,
    let_outage_grow_old,
    make_job,
    new_token,
    server_now_ms,
    try_claim,
    work_off,
)
from tests.support.waiting import wait_until


def events(client: redis.Redis) -> list[tuple[str, str, str]]:
    """`(job, generation, state)` of each job that ended."""
    entries = client.xrange(keys.EVENTS)
    return [(entry["job_id"], entry["generation"], entry["state"]) for _, entry in entries]


def lose(ledger: Ledger, client: redis.Redis, claimed: Claim) -> None:
    """The worker dies, and the reconciler finds out."""
    let_leases_expire(client, (claimed.job_id, claimed.chunk_id))
    assert ledger.reconcile()[0] == 1


def due_in_ms(client: redis.Redis, claimed: Claim) -> float:
    """Time until a chunk that was given back may be claimed."""
    due = client.zscore(keys.job(claimed.job_id, keys.DUE), str(claimed.chunk_id))
    assert due is not None, "the chunk was not given back"
    return float(due) - server_now_ms(client)


# --- submit ---


def test_a_submitted_job_is_known(ledger: Ledger) -> None:
    job = make_job()

    assert ledger.submit(job) == (True, JobState.SUBMITTING)

    assert ledger.job("job") == job


def test_the_same_submit_again_finds_the_job_as_it_is(ledger: Ledger) -> None:
    add_job(ledger, chunks=2)

    assert ledger.submit(make_job()) == (False, JobState.RUNNING)

    assert ledger.status("job").chunks == 2


def test_a_later_time_or_another_lane_do_not_make_another_job(ledger: Ledger) -> None:
    first = make_job(lane=Lane.BULK)
    ledger.submit(first)

    assert ledger.submit(make_job(lane=Lane.HIGH)) == (False, JobState.SUBMITTING)

    assert ledger.job("job") == first


def test_a_job_id_that_is_taken_by_another_job_is_a_conflict_that_names_the_difference(
    ledger: Ledger,
) -> None:
    ledger.submit(make_job())

    with pytest.raises(JobConflictError, match=r"differs in: model, top_k\. Choose another --job-id"):
        ledger.submit(make_job(model="other:weights", top_k=3))


def test_a_conflict_with_a_job_of_another_version_says_so(ledger: Ledger, redis_client: redis.Redis) -> None:
    ledger.submit(make_job())
    redis_client.hset(keys.job("job"), "fingerprint", "of-tomorrow")
    redis_client.set(keys.job("job", keys.SPEC), '{"new_field": 1}', keepttl=True)

    with pytest.raises(JobConflictError, match="written by another version of clipfleet"):
        ledger.submit(make_job())


def test_a_job_of_an_earlier_build_goes_on(ledger: Ledger, redis_client: redis.Redis) -> None:
    job = add_job(ledger, job=make_job("job").model_copy(update={"on_finished": "myapp.handle"}))
    spec = redis_client.getdel(keys.job(job.job_id, keys.SPEC))
    redis_client.hset(keys.job(job.job_id), "spec", spec)  # type: ignore[arg-type]  # where it was then

    ledger.reconcile()

    assert ledger.job(job.job_id) == job
    assert ledger.submit(job) == (False, JobState.RUNNING)
    complete(ledger, claim(ledger), ok=10)
    ledger.finish(claim_finish(ledger), ttl_seconds=60)
    assert ledger.status(job.job_id).state is JobState.COMPLETED
    assert redis_client.zcard(keys.ANNOUNCEMENTS) == 1


@pytest.mark.parametrize("ask", ["job", "status", "pause", "resume", "cancel"])
def test_an_unknown_job_is_named_with_the_way_to_the_known_ones(ledger: Ledger, ask: str) -> None:
    calls = {
        "job": lambda: ledger.job("nope"),
        "status": lambda: ledger.status("nope"),
        "pause": lambda: ledger.pause("nope", "why"),
        "resume": lambda: ledger.resume("nope"),
        "cancel": lambda: ledger.cancel("nope", ttl_seconds=60),
    }

    with pytest.raises(JobNotFoundError, match="'nope' is not known here: `clipfleet jobs`"):
        calls[ask]()


# --- stage ---


def test_chunks_can_be_claimed_while_the_job_is_still_being_submitted(ledger: Ledger) -> None:
    add_job(ledger, chunks=1, sealed=False)

    assert claim(ledger).chunk_id == 0

    assert ledger.status("job").state is JobState.SUBMITTING


def test_a_file_that_is_staged_later_is_found_by_claims_that_had_seen_the_job_empty(ledger: Ledger) -> None:
    add_job(ledger, chunks=1, sealed=False)
    claim(ledger)
    assert try_claim(ledger) is None

    ledger.stage("job", 1, 2, 20)

    assert claim(ledger).chunk_id == 1


def test_a_staged_file_that_is_told_again_is_known_and_not_counted_again(ledger: Ledger) -> None:
    add_job(ledger, chunks=2, sealed=False)

    assert ledger.stage("job", 0, 2, 20) == "known"

    assert ledger.status("job").chunks == 2
    assert ledger.status("job").total == 20


def test_a_file_out_of_order_is_a_gap(ledger: Ledger) -> None:
    add_job(ledger, chunks=2, sealed=False)

    assert ledger.stage("job", 3, 1, 10) == "gap"


def test_a_file_that_overlaps_a_known_one_is_a_gap(ledger: Ledger) -> None:
    add_job(ledger, chunks=2, sealed=False)

    assert ledger.stage("job", 0, 1, 10) == "gap"


def test_a_sealed_job_takes_no_more_files(ledger: Ledger) -> None:
    add_job(ledger, chunks=1)

    assert ledger.stage("job", 1, 1, 10) == "refused"


def test_a_sealed_job_takes_no_more_files_during_a_pause_either(ledger: Ledger) -> None:
    add_job(ledger, chunks=1)
    ledger.pause("job", "for a while")

    assert ledger.stage("job", 1, 1, 10) == "refused"


def test_a_cancelled_job_takes_no_more_files_but_knows_its_own(ledger: Ledger) -> None:
    add_job(ledger, chunks=1, sealed=False)
    ledger.cancel("job", ttl_seconds=60)

    assert ledger.stage("job", 1, 1, 10) == "refused"
    assert ledger.stage("job", 0, 1, 10) == "known"


def test_an_unknown_job_takes_no_files(ledger: Ledger) -> None:
    assert ledger.stage("nope", 0, 1, 10) == "refused"


def test_a_paused_job_takes_files_and_hands_them_out_after_the_pause(ledger: Ledger) -> None:
    add_job(ledger, chunks=0, sealed=False)
    ledger.pause("job", "for a while")

    assert ledger.stage("job", 0, 1, 10) == "staged"
    assert try_claim(ledger) is None
    ledger.resume("job")

    assert claim(ledger).chunk_id == 0


def test_staged_files_are_listed_in_order_so_that_a_killed_submit_can_go_on(ledger: Ledger) -> None:
    add_job(ledger, chunks=0, sealed=False)
    for first, chunks in [(0, 9), (9, 2), (11, 256)]:
        ledger.stage("job", first, chunks, chunks)

    assert ledger.staged_files("job") == [(0, 9), (9, 2), (11, 256)]


# --- seal ---


def test_a_seal_ends_the_source_and_the_job_runs(ledger: Ledger) -> None:
    add_job(ledger, chunks=2, sealed=False)

    assert ledger.seal("job", 2, 20) == "sealed"

    assert ledger.status("job").state is JobState.RUNNING
    assert ledger.status("job").sealed


def test_a_seal_can_be_repeated_even_after_the_end(ledger: Ledger) -> None:
    add_job(ledger, chunks=1)
    assert ledger.seal("job", 1, 10) == "sealed"
    work_off(ledger)
    ledger.finish(claim_finish(ledger), ttl_seconds=60)

    assert ledger.seal("job", 1, 10) == "sealed"

    assert ledger.status("job").state is JobState.COMPLETED


@pytest.mark.parametrize(("chunks", "items"), [(3, 20), (2, 21)])
def test_a_seal_with_other_numbers_than_were_staged_is_a_mismatch(
    ledger: Ledger, chunks: int, items: int
) -> None:
    add_job(ledger, chunks=2, sealed=False)

    assert ledger.seal("job", chunks, items) == "mismatch"

    assert not ledger.status("job").sealed


def test_a_seal_of_a_cancelled_or_unknown_job_is_refused(ledger: Ledger) -> None:
    add_job(ledger, chunks=1, sealed=False)
    ledger.cancel("job", ttl_seconds=60)

    assert ledger.seal("job", 1, 10) == "refused"
    assert ledger.seal("nope", 1, 10) == "refused"


def test_a_seal_that_comes_after_the_last_chunk_makes_the_job_finishing(ledger: Ledger) -> None:
    add_job(ledger, chunks=2, sealed=False)
    work_off(ledger)

    ledger.seal("job", 2, 20)

    assert ledger.status("job").state is JobState.FINISHING


def test_a_seal_does_not_end_a_pause(ledger: Ledger) -> None:
    add_job(ledger, chunks=1, sealed=False)
    ledger.pause("job", "for a while")

    ledger.seal("job", 1, 10)

    assert ledger.status("job").state is JobState.PAUSED
    assert ledger.resume("job") == (True, JobState.RUNNING)


def test_an_empty_job_has_nothing_to_do_but_to_finish(ledger: Ledger) -> None:
    add_job(ledger, chunks=0)

    assert ledger.status("job").state is JobState.FINISHING


# --- claim ---


def test_a_claim_tells_the_worker_all_it_needs_to_find_the_items(ledger: Ledger) -> None:
    job = add_job(ledger, chunks=3, sealed=False)
    ledger.stage("job", 3, 2, 20)
    first_file = [claim(ledger) for _ in range(3)]

    found = claim(ledger, token="delivery-1")

    assert [other.first_chunk for other in first_file] == [0, 0, 0]
    assert found == Claim(
        token="delivery-1", job_id="job", chunk_id=3, generation=0, losses=0, failures=0, waits=0,
        job_fingerprint=job.fingerprint, first_chunk=3, chunks=2, more=True, chunk_size=512,
        job_created_ms=ledger.status("job").created_ms,
    )  # fmt: skip


def test_each_claim_gets_a_chunk_of_its_own(ledger: Ledger) -> None:
    add_job(ledger, chunks=3)

    assert [claim(ledger).chunk_id for _ in range(3)] == [0, 1, 2]

    assert try_claim(ledger) is None


def test_the_same_token_gets_the_same_chunk_again(ledger: Ledger) -> None:
    add_job(ledger, chunks=3)
    first = claim(ledger, token="delivery-1")

    again = claim(ledger, token="delivery-1")

    assert again.chunk_id == first.chunk_id
    assert ledger.status("job").leased_chunks == 1


def test_a_claim_that_is_repeated_has_its_whole_lease_before_it(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    add_job(ledger)
    claim(ledger, token="delivery-1")
    let_leases_expire(redis_client)

    claim(ledger, token="delivery-1")

    assert ledger.reconcile()[0] == 0


def test_a_token_whose_chunk_is_complete_gets_nothing_more(ledger: Ledger) -> None:
    add_job(ledger, chunks=2)
    complete(ledger, claim(ledger, token="delivery-1"))

    assert try_claim(ledger, token="delivery-1") is None


def test_a_token_whose_lease_was_lost_gets_nothing_more(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger, chunks=2)
    lose(ledger, redis_client, claim(ledger, token="delivery-1"))

    assert try_claim(ledger, token="delivery-1") is None


def test_a_token_that_found_nothing_may_find_something_later(ledger: Ledger) -> None:
    assert try_claim(ledger, token="delivery-1") is None
    add_job(ledger)

    assert try_claim(ledger, token="delivery-1") is not None


def test_a_claim_tells_whether_work_remains_in_its_job(ledger: Ledger) -> None:
    add_job(ledger, chunks=2)

    assert [claim(ledger).more, claim(ledger).more] == [True, False]


def test_a_claim_tells_whether_work_remains_in_other_jobs(ledger: Ledger) -> None:
    add_job(ledger, "first", chunks=1)
    add_job(ledger, "second", chunks=1, lane=Lane.BULK)

    assert [claim(ledger).more, claim(ledger, lanes=[Lane.HIGH, Lane.BULK]).more] == [True, False]


def test_a_chunk_that_came_back_counts_as_work_that_remains(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    add_job(ledger, chunks=2)
    lost = [claim(ledger), claim(ledger)]
    let_leases_expire(redis_client)
    ledger.reconcile()

    assert [claim(ledger).more, claim(ledger).more] == [True, False]
    assert len(lost) == 2


def test_high_comes_before_normal_before_bulk(ledger: Ledger) -> None:
    for lane in (Lane.BULK, Lane.NORMAL, Lane.HIGH):
        add_job(ledger, lane.value, chunks=2, lane=lane)

    order = [claim(ledger).job_id for _ in range(6)]

    assert order == ["high", "high", "normal", "normal", "bulk", "bulk"]


def test_a_worker_gets_only_the_lanes_it_asks_for(ledger: Ledger) -> None:
    add_job(ledger, "bulk", lane=Lane.BULK)

    assert try_claim(ledger, lanes=[Lane.HIGH, Lane.NORMAL]) is None


def test_each_eighth_claim_looks_from_the_bottom_so_that_no_lane_starves(ledger: Ledger) -> None:
    add_job(ledger, "high", chunks=20, lane=Lane.HIGH)
    add_job(ledger, "bulk", chunks=20, lane=Lane.BULK)

    order = [claim(ledger).job_id for _ in range(16)]

    assert order == (["high"] * 7 + ["bulk"]) * 2


def test_the_lane_in_the_middle_does_not_starve_between_the_others(ledger: Ledger) -> None:
    for lane in (Lane.HIGH, Lane.NORMAL, Lane.BULK):
        add_job(ledger, lane.value, chunks=40, lane=lane)

    order = [claim(ledger).job_id for _ in range(32)]

    assert order == (["high"] * 7 + ["bulk"] + ["high"] * 7 + ["normal"]) * 2


def test_only_claims_that_find_something_count_for_ageing(ledger: Ledger) -> None:
    for _ in range(7):
        assert try_claim(ledger) is None
    add_job(ledger, "high", chunks=20, lane=Lane.HIGH)
    add_job(ledger, "bulk", chunks=20, lane=Lane.BULK)

    assert [claim(ledger).job_id for _ in range(8)] == ["high"] * 7 + ["bulk"]


def test_looking_for_work_in_vain_writes_nothing(ledger: Ledger, redis_client: redis.Redis) -> None:
    assert try_claim(ledger) is None

    assert redis_client.keys("*") == []


def test_the_jobs_of_a_lane_take_turns(ledger: Ledger) -> None:
    for name in ("a", "b", "c"):
        add_job(ledger, name, chunks=2)

    assert [claim(ledger).job_id for _ in range(6)] == ["a", "b", "c", "a", "b", "c"]


def test_a_job_that_returns_to_its_lane_keeps_its_turn(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger, "a", chunks=1)
    add_job(ledger, "b", chunks=9)
    lost = claim(ledger)
    assert [claim(ledger).job_id for _ in range(3)] == ["b", "b", "b"]  # "a" has nothing left

    lose(ledger, redis_client, lost)

    assert [claim(ledger).job_id for _ in range(2)] == ["a", "b"]


def test_a_job_that_returns_to_its_lane_does_not_jump_the_queue(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    add_job(ledger, "older", chunks=2)
    claim(ledger)
    add_job(ledger, "later", chunks=1)
    lost = claim(ledger)
    assert try_claim(ledger, excluded_jobs=["older"]) is None  # "later" has nothing left

    lose(ledger, redis_client, lost)

    assert [claim(ledger).job_id for _ in range(2)] == ["older", "later"]


def test_jobs_of_different_models_take_turns_too(ledger: Ledger) -> None:
    add_job(ledger, "a", chunks=2, model="one:x")
    add_job(ledger, "b", chunks=2, model="two:x")

    order = [claim(ledger, models=["one:x", "two:x"]).job_id for _ in range(4)]

    assert sorted(order[:2]) == sorted(order[2:]) == ["a", "b"]


def test_a_worker_gets_only_chunks_for_models_it_serves(ledger: Ledger) -> None:
    add_job(ledger, "a", model="one:x")
    add_job(ledger, "b", model="two:x")

    assert claim(ledger, models=["two:x"]).job_id == "b"
    assert try_claim(ledger, models=["two:x"]) is None
    assert try_claim(ledger, models=["three:x"]) is None


def test_a_worker_that_cannot_serve_a_job_excludes_it_without_taking_it_from_others(ledger: Ledger) -> None:
    add_job(ledger, "a", chunks=2)
    add_job(ledger, "b", chunks=1)

    assert claim(ledger, excluded_jobs=["a"]).job_id == "b"
    assert try_claim(ledger, excluded_jobs=["a"]) is None
    assert claim(ledger).job_id == "a"


def test_a_chunk_that_came_back_is_claimed_before_new_ones(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger, chunks=3)
    lost = claim(ledger)
    lose(ledger, redis_client, lost)

    assert [claim(ledger).chunk_id for _ in range(3)] == [0, 1, 2]


def test_many_jobs_that_wait_for_a_back_off_do_not_hide_the_one_that_has_work(ledger: Ledger) -> None:
    for number in range(70):
        add_job(ledger, f"waits{number}")
        ledger.release(claim(ledger), "waits", reason="store away", first_back_off_seconds=100)
    add_job(ledger, "busy", chunks=3)

    assert [claim(ledger).job_id for _ in range(3)] == ["busy"] * 3


def test_many_excluded_jobs_do_not_hide_the_one_that_has_work(ledger: Ledger) -> None:
    excluded = [f"excluded{number:02d}" for number in range(70)]
    for name in [*excluded, "good"]:
        add_job(ledger, name)

    assert claim(ledger, excluded_jobs=excluded).job_id == "good"


def test_a_job_that_waits_for_a_back_off_does_not_hold_up_its_lane(ledger: Ledger) -> None:
    add_job(ledger, "a", chunks=1)
    add_job(ledger, "b", chunks=1)
    ledger.release(claim(ledger), "failures", reason="", first_back_off_seconds=100)

    assert claim(ledger).job_id == "b"
    assert try_claim(ledger) is None


def test_a_job_that_has_waited_longer_comes_first_whatever_lies_before_it_and_whichever_its_model(
    ledger: Ledger,
) -> None:
    for name in ("empty1", "empty2"):
        add_job(ledger, name, model="one:x")
        claim(ledger, models=["one:x"])
    add_job(ledger, "b", chunks=2, model="two:x")
    claim(ledger, models=["two:x"])
    add_job(ledger, "a", chunks=2, model="one:x")
    claim(ledger, models=["one:x"])

    assert claim(ledger, models=["one:x", "two:x"]).job_id == "b"


# --- renew ---


def lease(claimed: Claim) -> Lease:
    return Lease(claimed.job_id, str(claimed.chunk_id), claimed.token)


def test_a_lease_that_is_renewed_is_held_for_longer(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger)
    claimed = claim(ledger)
    let_leases_expire(redis_client)

    assert ledger.renew([lease(claimed)], 60) == ["held"]

    assert ledger.reconcile()[0] == 0


def test_a_lease_that_the_reconciler_took_back_is_lost(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger)
    claimed = claim(ledger)
    lose(ledger, redis_client, claimed)

    assert ledger.renew([lease(claimed)], 60) == ["lost"]


def test_a_lease_that_another_worker_holds_now_is_lost_and_stays_with_the_other(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    add_job(ledger)
    first = claim(ledger)
    lose(ledger, redis_client, first)
    second = claim(ledger)

    assert ledger.renew([lease(first), lease(second)], 60) == ["lost", "held"]


def test_renewing_tells_about_a_pause_and_the_chunk_is_still_held(ledger: Ledger) -> None:
    add_job(ledger)
    claimed = claim(ledger)
    ledger.pause("job", "for a while")

    assert ledger.renew([lease(claimed)], 60) == ["paused"]
    assert ledger.release(claimed, "drain", reason="") == "released"


@pytest.mark.parametrize("end", ["cancel", "fail"])
def test_renewing_tells_that_a_job_was_ended(ledger: Ledger, end: str) -> None:
    add_job(ledger)
    claimed = claim(ledger)
    if end == "cancel":
        ledger.cancel("job", ttl_seconds=60)
    else:
        ledger.fail("job", "no disk", ttl_seconds=60)

    assert ledger.renew([lease(claimed)], 60) == ["cancelled"]


def test_many_leases_are_renewed_at_once_and_answered_in_order(ledger: Ledger) -> None:
    add_job(ledger, "a", chunks=2)
    first, second = claim(ledger), claim(ledger)
    add_job(ledger, "b")
    ended = claim(ledger)
    ledger.cancel("b", ttl_seconds=60)
    complete(ledger, first)

    leases = [lease(ended), lease(second), lease(first), Lease("nope", "0", "token")]

    assert ledger.renew(leases, 60) == ["cancelled", "held", "lost", "lost"]


def test_renewing_nothing_is_no_call(ledger: Ledger) -> None:
    assert ledger.renew([], 60) == []


# --- complete ---


def test_a_complete_chunk_counts_its_rows_codes_and_seconds(ledger: Ledger) -> None:
    add_job(ledger, chunks=2)
    codes = {"not_found": 2, "timeout": 1}
    first, second = claim(ledger), claim(ledger)

    ledger.complete(first, ok=7, failed=3, codes=codes, work_seconds={"fetch": 1.5, "decode": 0.25})
    ledger.complete(second, ok=9, failed=1, codes={"timeout": 1}, work_seconds={"fetch": 1.0})

    status = ledger.status("job")
    assert (status.ok, status.failed, status.done_chunks, status.open) == (16, 4, 2, 0)
    assert status.codes == {"not_found": 2, "timeout": 2}
    assert status.work_seconds == {"fetch": 2.5, "decode": 0.25}


def measured(ledger: Ledger, claimed: Claim, meters: Meters) -> str:
    return ledger.complete(claimed, ok=10, failed=0, codes={}, work_seconds={}, meters=meters)


def test_what_chunks_have_measured_adds_up_once(ledger: Ledger) -> None:
    add_job(ledger, chunks=3)
    first, second, third = claim(ledger), claim(ledger), claim(ledger)

    measured(ledger, first, Meters({"write": 1.5, "on cpu, fp32": 0.25}))
    measured(ledger, first, Meters({"write": 1.5}))
    measured(ledger, second, Meters({"write": 1.0, "fetching": 7.0}))
    measured(ledger, third, NO_METERS)

    status = ledger.status("job")
    assert status.meters == Meters({"write": 2.5, "on cpu, fp32": 0.25, "fetching": 7.0})
    assert status.ran == 30


def test_what_many_chunks_have_measured_is_told_at_once_and_kept_in_few_fields(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    def kept_apart() -> int:
        return sum(name.startswith("measured:") for name in redis_client.hkeys(keys.job("job")))

    add_job(ledger, chunks=40)
    for number in range(1, 41):
        seconds = {"fetch": 1.5, f"stage-{number % 3}": 0.25}
        meters = Meters({"fetching": 1.0})
        ledger.complete(claim(ledger), ok=10, failed=0, codes={}, work_seconds=seconds, meters=meters)

        status = ledger.status("job")
        assert status.meters["fetching"] == number
        assert status.work_seconds["fetch"] == 1.5 * number
        assert sum(status.work_seconds.values()) == 1.75 * number
        assert kept_apart() < 16

    assert status.state is JobState.FINISHING
    assert kept_apart() == 0


def test_an_ended_job_has_all_that_was_measured_in_its_sums(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    add_job(ledger, chunks=3)
    measured(ledger, claim(ledger), Meters({"write": 1.0}))
    measured(ledger, claim(ledger), Meters({"write": 0.5}))
    ledger.cancel("job", ttl_seconds=60)

    facts = redis_client.hgetall(keys.job("job"))

    assert json.loads(facts["meters"]) == {"write": 1.5}
    assert not [name for name in facts if name.startswith("measured:")]


def test_sums_go_on_that_an_earlier_version_began(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger, chunks=2)
    before = {
        "seconds:fetch": "0.500000",
        "meters": json.dumps({"write": 2.0}),
    }
    redis_client.hset(keys.job("job"), mapping=before)

    meters = Meters({"write": 1.5})
    ledger.complete(claim(ledger), ok=16, failed=0, codes={}, work_seconds={"fetch": 1.5}, meters=meters)

    running = ledger.status("job")
    ledger.cancel("job", ttl_seconds=60)
    for status in (running, ledger.status("job")):
        assert status.work_seconds == {"fetch": 2.0}
        assert status.meters == Meters({"write": 3.5})


@pytest.mark.parametrize("junk", ["nothing", "[" * 5000, '["a"]', '{"write": 1e999}', '{"write": [1]}'])
def test_what_a_producer_put_in_its_place_keeps_no_chunk_open(
    ledger: Ledger, redis_client: redis.Redis, junk: str
) -> None:
    add_job(ledger)
    redis_client.hset(keys.job("job"), "meters", junk)

    assert measured(ledger, claim(ledger), Meters({"write": 1.5})) == "finishing"


def test_workers_starve_while_all_that_was_submitted_is_claimed(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    def has_passed(seconds: int) -> None:
        redis_client.hincrby(keys.job("job"), "starved_since", -1000 * seconds)

    # Given a job that is being submitted, it starves from the claim of its last chunk on
    add_job(ledger, chunks=2, sealed=False)
    claim(ledger)
    assert not redis_client.hexists(keys.job("job"), "starved_since")
    claim(ledger)
    assert redis_client.hexists(keys.job("job"), "starved_since")

    # When more is staged, that is over; a second time adds to it
    has_passed(20)
    assert 20_000 <= ledger.status("job").starved_ms < 25_000
    ledger.stage("job", 2, 1, 10)
    assert not redis_client.hexists(keys.job("job"), "starved_since")
    claim(ledger)
    has_passed(10)
    assert ledger.seal("job", 3, 30) == "sealed"
    assert 30_000 <= ledger.status("job").starved_ms < 40_000

    # Once sealed, nothing more is to come
    assert not redis_client.hexists(keys.job("job"), "starved_since")


def test_the_last_complete_makes_a_sealed_job_finishing(ledger: Ledger) -> None:
    add_job(ledger, chunks=2)
    first, second = claim(ledger), claim(ledger)

    assert [complete(ledger, second), complete(ledger, first)] == ["done", "finishing"]

    assert ledger.status("job").state is JobState.FINISHING


def test_the_last_complete_of_a_job_that_is_not_sealed_is_not_the_end(ledger: Ledger) -> None:
    add_job(ledger, chunks=1, sealed=False)

    assert complete(ledger, claim(ledger)) == "done"

    assert ledger.status("job").state is JobState.SUBMITTING


def test_a_complete_that_is_repeated_counts_once(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger, chunks=2)
    claimed = claim(ledger)

    assert [complete(ledger, claimed), complete(ledger, claimed)] == ["done", "already"]

    assert ledger.status("job").ok == 10
    assert redis_client.xlen(keys.job("job", keys.STREAM)) == 1


def test_a_worker_that_lost_its_lease_may_still_complete_since_its_part_is_the_one_in_place(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    add_job(ledger, chunks=1)
    claimed = claim(ledger)
    lose(ledger, redis_client, claimed)

    assert complete(ledger, claimed) == "finishing"

    assert try_claim(ledger) is None
    assert ledger.status("job").due_chunks == 0


def test_of_two_workers_with_the_same_chunk_the_second_finds_it_complete(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    add_job(ledger, chunks=1)
    first = claim(ledger)
    lose(ledger, redis_client, first)
    second = claim(ledger)
    assert second.chunk_id == first.chunk_id

    assert [complete(ledger, first), complete(ledger, second)] == ["finishing", "already"]

    assert ledger.status("job").ok == 10


def test_what_is_said_of_a_chunk_by_who_lost_it_leaves_no_trouble_of_it(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    add_job(ledger, chunks=2)
    first = claim(ledger)
    lose(ledger, redis_client, first)
    assert claim(ledger).losses == 1

    assert complete(ledger, first) == "done"

    assert not redis_client.exists(keys.job("job", keys.TROUBLES))


def test_the_worker_whose_chunk_another_completed_has_lost_its_lease(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    add_job(ledger, chunks=2)
    first = claim(ledger)
    lose(ledger, redis_client, first)
    second = claim(ledger)

    complete(ledger, first)

    assert ledger.renew([lease(second)], 60) == ["lost"]
    assert ledger.release(second, "waits", reason="store away") == "not_held"
    assert ledger.status("job").due_chunks == 0


def test_a_part_of_another_generation_does_not_count(ledger: Ledger) -> None:
    add_job(ledger, chunks=1)
    claimed = claim(ledger)

    assert complete(ledger, replace(claimed, generation=1)) == "stale"

    assert ledger.status("job").done_chunks == 0


def test_a_chunk_whose_completion_was_stale_is_not_lost(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger, chunks=1)
    claimed = claim(ledger)
    complete(ledger, replace(claimed, generation=1))

    lose(ledger, redis_client, claimed)

    assert claim(ledger).chunk_id == claimed.chunk_id


def test_a_part_of_a_cancelled_job_does_not_count(ledger: Ledger) -> None:
    add_job(ledger, chunks=1)
    claimed = claim(ledger)
    ledger.cancel("job", ttl_seconds=60)

    assert complete(ledger, claimed) == "cancelled"

    assert ledger.status("job").ok == 0


def test_a_chunk_that_nobody_ever_claimed_cannot_be_complete(ledger: Ledger) -> None:
    add_job(ledger, chunks=2)
    claimed = claim(ledger)

    assert complete(ledger, replace(claimed, chunk_id=1)) == "missing"
    assert complete(ledger, replace(claimed, job_id="nope")) == "missing"


def test_what_is_under_way_when_a_job_is_paused_may_be_completed(ledger: Ledger) -> None:
    add_job(ledger, chunks=2)
    first, second = claim(ledger), claim(ledger)
    ledger.pause("job", "for a while")

    assert [complete(ledger, first), complete(ledger, second)] == ["done", "finishing"]


# --- release ---


@pytest.mark.parametrize(
    ("kind", "expected"), [("failures", [30, 60, 120, 240, 300]), ("waits", [30, 60, 60, 60, 60])]
)
def test_each_release_doubles_the_back_off_up_to_a_bound(
    ledger: Ledger, redis_client: redis.Redis, kind: str, expected: list[float]
) -> None:
    add_job(ledger)
    back_offs = []
    for _ in range(5):
        claimed = claim(ledger)
        ledger.release(claimed, kind, reason="", first_back_off_seconds=30)
        back_offs.append(due_in_ms(redis_client, claimed) / 1000)
        let_back_offs_pass(redis_client, "job")

    assert back_offs == pytest.approx(expected, abs=5)


def test_a_released_chunk_is_claimed_once_its_back_off_is_over(ledger: Ledger) -> None:
    add_job(ledger, chunks=2)
    long, short = claim(ledger), claim(ledger)
    ledger.release(long, "waits", reason="store away", first_back_off_seconds=100)
    ledger.release(short, "waits", reason="store away", first_back_off_seconds=0.1)

    again = wait_until(lambda: try_claim(ledger), "a back-off is over", seconds=5)

    assert again.chunk_id == short.chunk_id
    assert try_claim(ledger) is None


def test_a_worker_that_leaves_releases_its_chunks_for_others_at_once(ledger: Ledger) -> None:
    add_job(ledger)
    ledger.release(claim(ledger), "drain", reason="", first_back_off_seconds=100)

    again = claim(ledger)

    assert (again.losses, again.failures, again.waits) == (0, 0, 1)


def test_a_claim_tells_how_often_the_chunk_came_back_and_why(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    add_job(ledger)
    ledger.release(claim(ledger), "failures", reason="")
    let_back_offs_pass(redis_client, "job")
    ledger.release(claim(ledger), "waits", reason="")
    let_back_offs_pass(redis_client, "job")
    lose(ledger, redis_client, claim(ledger))

    again = claim(ledger)

    assert (again.losses, again.failures, again.waits) == (1, 1, 1)


def test_a_chunk_is_released_once_however_often_it_is_said(ledger: Ledger) -> None:
    add_job(ledger)
    claimed = claim(ledger)

    words = [ledger.release(claimed, "drain", reason="") for _ in range(2)]

    assert words == ["released", "not_held"]
    assert claim(ledger).waits == 1


def test_who_lost_the_lease_cannot_release_what_another_holds(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    add_job(ledger)
    first = claim(ledger)
    lose(ledger, redis_client, first)
    second = claim(ledger)

    assert ledger.release(first, "drain", reason="") == "not_held"

    assert ledger.renew([lease(second)], 60) == ["held"]


def test_a_chunk_of_a_paused_job_comes_back_to_be_claimed_after_the_pause(ledger: Ledger) -> None:
    add_job(ledger)
    claimed = claim(ledger)
    ledger.pause("job", "for a while")
    ledger.release(claimed, "drain", reason="")
    assert try_claim(ledger) is None

    ledger.resume("job")

    assert claim(ledger).chunk_id == claimed.chunk_id


def test_a_chunk_that_failed_too_often_is_handed_out_as_exhausted(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    add_job(ledger)
    seen = []
    for _ in range(MAX_FAILURES + 1):
        claimed = claim(ledger)
        seen.append(claimed.is_exhausted)
        ledger.release(claimed, "failures", reason="")
        let_back_offs_pass(redis_client, "job")

    assert seen == [False] * MAX_FAILURES + [True]


def test_waiting_for_the_world_never_exhausts_a_chunk(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger)
    for _ in range(20):
        ledger.release(claim(ledger), "waits", reason="store away")
        let_back_offs_pass(redis_client, "job")

    assert not claim(ledger).is_exhausted


# --- outage, pause, resume ---


def test_an_outage_that_lasts_too_long_pauses_the_job_with_its_reason(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    add_job(ledger, chunks=2)
    assert ledger.release(claim(ledger), "waits", reason="store away", outage_seconds=3600) == "released"
    assert (ledger.status("job").state, ledger.status("job").reason) == (JobState.RUNNING, "store away")
    let_outage_grow_old(redis_client, "job")

    word = ledger.release(claim(ledger), "waits", reason="store away since noon", outage_seconds=3600)

    assert word == "paused"
    assert ledger.status("job").state is JobState.PAUSED
    assert ledger.status("job").reason == "store away since noon"
    assert try_claim(ledger) is None


def test_a_job_that_was_paused_by_hand_keeps_that_reason(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger, chunks=2)
    ledger.release(claim(ledger), "waits", reason="store away")
    let_outage_grow_old(redis_client, "job")
    claimed = claim(ledger)
    ledger.pause("job", "for a while")

    assert ledger.release(claimed, "waits", reason="store away") == "released"

    assert ledger.status("job").reason == "for a while"


def test_a_chunk_that_gets_through_ends_the_outage(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger, chunks=3)
    ledger.release(claim(ledger), "waits", reason="store away")
    let_outage_grow_old(redis_client, "job")
    complete(ledger, claim(ledger))
    assert ledger.status("job").reason == ""

    assert ledger.release(claim(ledger), "waits", reason="store away") == "released"


@pytest.mark.parametrize("kind", ["drain", "failures"])
def test_only_the_world_makes_an_outage(ledger: Ledger, redis_client: redis.Redis, kind: str) -> None:
    add_job(ledger, chunks=2)
    ledger.release(claim(ledger), kind, reason="")
    let_outage_grow_old(redis_client, "job")

    assert ledger.release(claim(ledger), "waits", reason="store away") == "released"


def test_a_resumed_job_goes_on_with_a_new_outage_clock(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger, chunks=3)
    ledger.release(claim(ledger), "waits", reason="store away")
    let_outage_grow_old(redis_client, "job")
    assert ledger.release(claim(ledger), "waits", reason="store away") == "paused"

    assert ledger.resume("job") == (True, JobState.RUNNING)

    assert ledger.status("job").reason == ""
    assert ledger.release(claim(ledger), "waits", reason="store away") == "released"


def test_a_paused_job_hands_out_nothing_until_it_is_resumed(ledger: Ledger) -> None:
    add_job(ledger, chunks=2)
    assert ledger.pause("job", "for a while") == (True, JobState.PAUSED)
    assert try_claim(ledger) is None

    ledger.resume("job")

    assert claim(ledger).chunk_id == 0


def test_a_job_that_was_paused_while_it_was_submitted_goes_on_being_submitted(ledger: Ledger) -> None:
    add_job(ledger, chunks=1, sealed=False)
    ledger.pause("job", "for a while")

    assert ledger.resume("job") == (True, JobState.SUBMITTING)


def test_pause_and_resume_change_nothing_where_there_is_nothing_to_change(ledger: Ledger) -> None:
    add_job(ledger, chunks=1)

    assert ledger.resume("job") == (False, JobState.RUNNING)
    ledger.pause("job", "first reason")
    assert ledger.pause("job", "second reason") == (False, JobState.PAUSED)
    assert ledger.status("job").reason == "first reason"
    ledger.cancel("job", ttl_seconds=60)
    assert ledger.pause("job", "why") == ledger.resume("job") == (False, JobState.CANCELLED)


# --- reconcile ---


def test_a_lease_that_ran_out_is_a_loss_and_the_first_one_is_due_at_once(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    add_job(ledger)
    claimed = claim(ledger)
    let_leases_expire(redis_client)

    assert ledger.reconcile() == (1, 0)

    again = claim(ledger)
    assert (again.chunk_id, again.losses) == (claimed.chunk_id, 1)


def test_leases_run_out_by_the_servers_clock(ledger: Ledger) -> None:
    add_job(ledger, chunks=2)
    claim(ledger)
    assert ledger.claim(new_token(), 0.1, list(Lane), ["demo"])

    wait_until(lambda: ledger.reconcile() == (1, 0), "a lease has run out", seconds=5)

    assert ledger.reconcile() == (0, 0)


def test_further_losses_wait_twice_as_long_each_time(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger)
    back_offs = []
    for _ in range(4):
        claimed = claim(ledger)
        let_leases_expire(redis_client)
        ledger.reconcile(first_back_off_seconds=30)
        back_offs.append(due_in_ms(redis_client, claimed) / 1000)
        let_back_offs_pass(redis_client, "job")

    assert back_offs == pytest.approx([0, 30, 60, 120], abs=5)


def test_many_reconcilers_at_once_count_each_loss_once(
    ledger: Ledger, redis_url: str, redis_client: redis.Redis
) -> None:
    add_job(ledger, chunks=50)
    for _ in range(40):
        claim(ledger)
    let_leases_expire(redis_client)

    def reconcile_often(_: int) -> int:
        own = Ledger(redis_url)
        try:
            return sum(own.reconcile()[0] for _ in range(5))
        finally:
            own.close()

    with ThreadPoolExecutor(8) as workers:
        assert sum(workers.map(reconcile_often, range(8))) == 40

    again = [claim(ledger) for _ in range(50)]
    assert sorted(claimed.chunk_id for claimed in again) == list(range(50))
    assert sorted(claimed.losses for claimed in again) == [0] * 10 + [1] * 40


def test_reconciling_twice_counts_a_loss_once(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger)
    claim(ledger)
    let_leases_expire(redis_client)

    assert [ledger.reconcile(), ledger.reconcile()] == [(1, 0), (0, 0)]

    assert claim(ledger).losses == 1


def test_a_chunk_that_killed_too_many_workers_is_handed_out_as_exhausted(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    add_job(ledger)
    seen = []
    for _ in range(MAX_LOSSES + 1):
        claimed = claim(ledger)
        seen.append(claimed.is_exhausted)
        lose(ledger, redis_client, claimed)
        let_back_offs_pass(redis_client, "job")

    assert seen == [False] * MAX_LOSSES + [True]


def test_a_chunk_that_is_lost_during_a_pause_is_claimed_after_it(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    add_job(ledger)
    claimed = claim(ledger)
    ledger.pause("job", "for a while")

    lose(ledger, redis_client, claimed)

    assert try_claim(ledger) is None
    ledger.resume("job")
    assert claim(ledger).losses == 1


def let_redis_be_away(ledger: Ledger, client: redis.Redis, seconds: float) -> None:
    """Nobody reached it since the last reconcile: all that it knows is older by so much."""
    ledger.reconcile()
    for key in (keys.LEASES, keys.WORKERS):
        for name, mark in client.zrange(key, 0, -1, withscores=True):
            client.zadd(key, {name: mark - seconds * 1000})
    client.decrby(keys.RECONCILED, int(seconds * 1000))


@pytest.mark.parametrize("seconds", [20, 600, 86_400])
def test_a_time_in_which_redis_was_away_costs_no_lease(
    ledger: Ledger, redis_client: redis.Redis, seconds: float
) -> None:
    add_job(ledger, chunks=2)
    ledger.heartbeat(WorkerFacts("w", "host", 7, ("demo",)))
    assert ledger.claim(new_token(), 12, list(Lane), ["demo"])
    assert ledger.claim(new_token(), 30, list(Lane), ["demo"])

    let_redis_be_away(ledger, redis_client, seconds)

    assert ledger.reconcile(lease_seconds=30) == (0, 0)
    now_ms = server_now_ms(redis_client)
    left = [
        round((mark - now_ms) / 1000) for _, mark in redis_client.zrange(keys.LEASES, 0, -1, withscores=True)
    ]
    assert left == pytest.approx([12, 30], abs=2)
    assert [facts.worker_id for facts in ledger.workers()] == ["w"]


def test_after_it_leases_run_out_as_ever(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger, chunks=2)
    claim(ledger)
    let_redis_be_away(ledger, redis_client, 600)
    assert ledger.reconcile() == (0, 0)

    let_leases_expire(redis_client)

    assert ledger.reconcile() == (1, 0)


def test_a_short_silence_is_no_absence(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger)
    assert ledger.claim(new_token(), 10, list(Lane), ["demo"])

    let_redis_be_away(ledger, redis_client, 14)

    assert ledger.reconcile(lease_seconds=30) == (1, 0)


def test_whoever_reconciles_seldom_lets_leases_run_out_all_the_same(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    """One worker is left, and CLIPFLEET_RECONCILE_SECONDS is long for CLIPFLEET_LEASE_SECONDS."""
    add_job(ledger)
    assert ledger.claim(new_token(), 10, list(Lane), ["demo"])

    lost = []
    for _ in range(3):
        let_redis_be_away(ledger, redis_client, 6)
        lost.append(ledger.reconcile(lease_seconds=10, period_seconds=5)[0])

    assert lost == [0, 1, 0]


def test_a_lease_that_was_over_before_redis_went_away_is_lost(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    add_job(ledger)
    claim(ledger)
    let_redis_be_away(ledger, redis_client, 600)
    let_leases_expire(redis_client)

    assert ledger.reconcile() == (1, 0)


def test_leases_of_a_job_that_is_gone_are_forgotten(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger)
    claim(ledger)
    let_leases_expire(redis_client)
    redis_client.delete(*redis_client.keys(keys.job("job", "*")))

    assert ledger.reconcile() == (0, 0)

    assert redis_client.exists(keys.LEASES, keys.job("job", keys.DUE)) == 0


# --- finish ---


def add_finishing_job(ledger: Ledger, job_id: str = "job", *, failed: int = 0) -> None:
    add_job(ledger, job_id, chunks=1)
    assert complete(ledger, claim(ledger), ok=10 - failed, failed=failed) == "finishing"


def test_a_job_whose_rows_are_all_ok_completes(ledger: Ledger) -> None:
    add_finishing_job(ledger)

    assert ledger.finish(claim_finish(ledger), ttl_seconds=60) == "completed"

    assert ledger.status("job").finished_ms is not None


def test_a_job_with_failed_rows_completes_with_errors(ledger: Ledger) -> None:
    add_finishing_job(ledger, failed=3)

    assert ledger.finish(claim_finish(ledger), ttl_seconds=60) == "completed_with_errors"


def test_a_finishing_job_is_offered_by_the_reconciler_until_someone_takes_it(ledger: Ledger) -> None:
    add_finishing_job(ledger)
    assert ledger.reconcile() == (0, 1)

    claim_finish(ledger)

    assert ledger.reconcile() == (0, 0)


def test_one_worker_at_a_time_finishes_a_job(ledger: Ledger) -> None:
    job = make_job()
    add_finishing_job(ledger)

    found = claim_finish(ledger)

    assert (found.job_id, found.generation, found.job_fingerprint) == ("job", 0, job.fingerprint)
    assert ledger.claim_finish(new_token(), 600) is None


def test_the_same_token_gets_the_same_job_to_finish_again(ledger: Ledger) -> None:
    add_finishing_job(ledger, "a")
    add_finishing_job(ledger, "b")
    first = ledger.claim_finish("delivery-1", 600)

    assert ledger.claim_finish("delivery-1", 600) == first


def test_one_delivery_may_claim_a_chunk_and_then_a_job_to_finish(ledger: Ledger) -> None:
    add_job(ledger, chunks=1)
    complete(ledger, claim(ledger, token="delivery-1"))

    assert ledger.claim_finish("delivery-1", 600) is not None
    assert try_claim(ledger, token="delivery-1") is None


def test_a_delivery_that_has_a_job_to_finish_may_still_claim_a_chunk(ledger: Ledger) -> None:
    add_finishing_job(ledger, "a")
    ledger.claim_finish("delivery-1", 600)
    add_job(ledger, "b")

    assert claim(ledger, token="delivery-1").job_id == "b"


def test_a_worker_that_cannot_reach_an_output_leaves_the_finishing_to_others(ledger: Ledger) -> None:
    add_finishing_job(ledger)

    assert ledger.claim_finish(new_token(), 600, excluded_jobs=["job"]) is None
    assert ledger.claim_finish(new_token(), 600) is not None


def test_many_excluded_jobs_do_not_hide_the_one_to_finish(ledger: Ledger) -> None:
    excluded = [f"excluded{number:02d}" for number in range(70)]
    for name in [*excluded, "good"]:
        add_finishing_job(ledger, name)

    found = ledger.claim_finish(new_token(), 600, excluded)

    assert found is not None
    assert found.job_id == "good"


def test_a_finish_claim_that_ran_out_is_taken_by_another_worker(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    add_finishing_job(ledger)
    first = claim_finish(ledger)
    let_finish_claims_expire(redis_client)

    second = claim_finish(ledger)

    assert second.job_id == first.job_id
    assert ledger.claim_finish(first.token, 600) is None
    words = ledger.renew([Lease("job", FINISH, first.token), Lease("job", FINISH, second.token)], 60)
    assert words == ["lost", "held"]


def test_a_finish_claim_that_is_renewed_is_held_for_longer(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_finishing_job(ledger)
    claimed = claim_finish(ledger)
    let_finish_claims_expire(redis_client)

    assert ledger.renew([Lease("job", FINISH, claimed.token)], 60) == ["held"]

    assert ledger.claim_finish(new_token(), 600) is None


def test_the_status_of_a_finishing_that_is_postponed_tells_why(ledger: Ledger) -> None:
    add_finishing_job(ledger)
    claimed = claim_finish(ledger)
    ledger.postpone_finish(claimed, 100, "the store is away")
    assert ledger.status("job").reason == "the store is away"

    ledger.finish(claimed, ttl_seconds=60)

    assert ledger.status("job").reason == ""


def test_a_finishing_that_is_postponed_is_tried_again_later_by_whoever_comes_first(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    add_finishing_job(ledger)
    ledger.postpone_finish(claim_finish(ledger), 100)
    assert ledger.claim_finish(new_token(), 600) is None

    let_finish_claims_expire(redis_client)

    assert ledger.claim_finish(new_token(), 600) is not None


def test_a_finishing_that_waits_for_too_long_pauses_the_job(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    add_finishing_job(ledger)
    ledger.postpone_finish(claim_finish(ledger), 0, "the store is away", outage_seconds=3600)
    let_outage_grow_old(redis_client, "job")
    let_finish_claims_expire(redis_client)

    word = ledger.postpone_finish(claim_finish(ledger), 0, "still away", outage_seconds=3600)

    assert word == "paused"
    assert (ledger.status("job").state, ledger.status("job").reason) == (JobState.PAUSED, "still away")
    assert ledger.claim_finish(new_token(), 600) is None
    assert try_claim(ledger) is None
    assert ledger.resume("job") == (True, JobState.FINISHING)
    assert ledger.finish(claim_finish(ledger), ttl_seconds=60) == "completed"
    assert ledger.status("job").reason == ""


def test_resuming_a_job_ends_all_waiting(ledger: Ledger) -> None:
    add_job(ledger, chunks=2)
    for _ in range(2):
        ledger.release(claim(ledger), "waits", reason="store away", first_back_off_seconds=60)
    ledger.pause("job", "for a while")
    ledger.resume("job")

    assert {claim(ledger).chunk_id for _ in range(2)} == {0, 1}


def test_a_finishing_that_is_postponed_for_too_long_fails_the_job_and_it_can_be_retried(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    add_finishing_job(ledger)

    def postpone(reason: str) -> str:
        let_finish_claims_expire(redis_client)
        claimed = claim_finish(ledger)
        return ledger.postpone_finish(
            claimed, 0, reason, outage_seconds=3600, ttl_seconds=60, is_lasting=True
        )

    assert postpone("the store is away") == "postponed"
    let_outage_grow_old(redis_client, "job")
    assert postpone("") == "postponed"  # a worker that leaves, nothing else
    assert postpone("part 0 is gone") == "failed"

    status = ledger.status("job")
    assert (status.state, status.reason) == (JobState.FAILED, "part 0 is gone")
    assert redis_client.ttl(keys.job("job")) <= 60
    assert ledger.claim_finish(new_token(), 600) is None


def test_who_lost_the_finish_claim_cannot_postpone_what_another_does(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    add_finishing_job(ledger)
    first = claim_finish(ledger)
    let_finish_claims_expire(redis_client)
    second = claim_finish(ledger)

    ledger.postpone_finish(first, 0)

    assert ledger.renew([Lease("job", FINISH, second.token)], 60) == ["held"]
    assert ledger.claim_finish(new_token(), 600) is None


def test_however_often_and_by_whom_a_job_is_finished_it_ends_once(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    add_finishing_job(ledger)
    first = claim_finish(ledger)
    let_finish_claims_expire(redis_client)
    second = claim_finish(ledger)

    words = [ledger.finish(claimed, ttl_seconds=60) for claimed in (first, second, first)]

    assert words == ["completed"] * 3
    assert events(redis_client) == [("job", "0", "completed")]


def test_a_job_with_open_chunks_of_another_generation_or_unknown_is_not_finished(ledger: Ledger) -> None:
    add_finishing_job(ledger)
    claimed = claim_finish(ledger)
    add_job(ledger, "open")

    assert ledger.finish(replace(claimed, job_id="open"), ttl_seconds=60) == "stale"
    assert ledger.finish(replace(claimed, generation=1), ttl_seconds=60) == "stale"
    assert ledger.finish(replace(claimed, job_id="nope"), ttl_seconds=60) == "missing"


# --- cancel, fail ---


def in_state(ledger: Ledger, state: JobState) -> None:
    """Bring a job "job" with one chunk into a state."""
    add_job(ledger, sealed=state is not JobState.SUBMITTING)
    if state is JobState.PAUSED:
        ledger.pause("job", "for a while")
    elif state is JobState.CANCELLED:
        ledger.cancel("job", ttl_seconds=60)
    elif state is JobState.FAILED:
        ledger.fail("job", "no disk", ttl_seconds=60)
    elif state not in (JobState.SUBMITTING, JobState.RUNNING):
        with_errors = state is JobState.COMPLETED_WITH_ERRORS
        complete(ledger, claim(ledger), ok=10 - with_errors, failed=int(with_errors))
        if state is not JobState.FINISHING:
            ledger.finish(claim_finish(ledger), ttl_seconds=60)
    assert ledger.status("job").state is state


@pytest.mark.parametrize("state", [JobState.SUBMITTING, JobState.RUNNING, JobState.PAUSED])
def test_a_job_with_open_chunks_can_be_cancelled(
    ledger: Ledger, redis_client: redis.Redis, state: JobState
) -> None:
    in_state(ledger, state)

    assert ledger.cancel("job", ttl_seconds=60) == (True, JobState.CANCELLED)

    assert try_claim(ledger) is None
    assert events(redis_client) == [("job", "0", "cancelled")]


@pytest.mark.parametrize(
    "state",
    [
        JobState.FINISHING,
        JobState.COMPLETED,
        JobState.COMPLETED_WITH_ERRORS,
        JobState.CANCELLED,
        JobState.FAILED,
    ],
)
def test_a_job_that_is_finishing_or_over_cannot_be_cancelled(
    ledger: Ledger, redis_client: redis.Redis, state: JobState
) -> None:
    in_state(ledger, state)
    before = events(redis_client)

    assert ledger.cancel("job", ttl_seconds=60) == (False, state)

    assert events(redis_client) == before


def test_a_cancelled_job_leaves_no_leases_behind(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger, chunks=3)
    claim(ledger)
    ledger.release(claim(ledger), "waits", reason="store away")

    ledger.cancel("job", ttl_seconds=60)

    status = ledger.status("job")
    assert (status.leased_chunks, status.due_chunks) == (0, 0)
    assert redis_client.exists(keys.LEASES) == 0
    assert ledger.reconcile() == (0, 0)


@pytest.mark.parametrize(
    "state", [JobState.SUBMITTING, JobState.RUNNING, JobState.PAUSED, JobState.FINISHING]
)
def test_a_job_whose_rows_cannot_be_written_fails_with_the_reason(
    ledger: Ledger, redis_client: redis.Redis, state: JobState
) -> None:
    in_state(ledger, state)

    for _ in range(2):
        ledger.fail("job", "no disk", ttl_seconds=60)

    assert ledger.status("job").state is JobState.FAILED
    assert ledger.status("job").reason == "no disk"
    assert events(redis_client) == [("job", "0", "failed")]
    assert ledger.reconcile() == (0, 0)


def test_a_job_that_failed_while_it_was_finished_stays_failed(ledger: Ledger) -> None:
    add_finishing_job(ledger)
    claimed = claim_finish(ledger)
    ledger.fail("job", "no disk", ttl_seconds=60)

    assert ledger.renew([Lease("job", FINISH, claimed.token)], 60) == ["cancelled"]
    assert ledger.finish(claimed, ttl_seconds=60) == "failed"


# --- status, jobs ---


def test_a_status_tells_where_every_chunk_is(ledger: Ledger) -> None:
    add_job(ledger, chunks=5, lane=Lane.BULK)
    done, _leased, released = claim(ledger), claim(ledger), claim(ledger)
    complete(ledger, done, ok=8, failed=2)
    ledger.release(released, "waits", reason="store away")

    status = ledger.status("job")

    assert (status.state, status.lane, status.model) == (JobState.RUNNING, Lane.BULK, "demo")
    assert (status.chunks, status.done_chunks, status.leased_chunks, status.due_chunks) == (5, 1, 1, 1)
    assert (status.total, status.ok, status.failed, status.open) == (50, 8, 2, 40)
    assert status.finished_ms is None


def test_times_in_a_status_are_the_servers(ledger: Ledger, redis_client: redis.Redis) -> None:
    before = server_now_ms(redis_client)
    add_finishing_job(ledger)
    ledger.finish(claim_finish(ledger), ttl_seconds=60)

    status = ledger.status("job")

    assert status.finished_ms is not None
    assert before <= status.created_ms <= status.finished_ms <= server_now_ms(redis_client)


def test_the_newest_jobs_come_first(ledger: Ledger, redis_client: redis.Redis) -> None:
    for age, name in enumerate(["c", "a", "b"]):
        add_job(ledger, name)
        redis_client.zadd(keys.JOBS, {name: 1_000 - age})

    assert [status.job_id for status in ledger.jobs()] == ["c", "a", "b"]
    assert [status.job_id for status in ledger.jobs(limit=2)] == ["c", "a"]


def test_a_job_whose_time_is_up_is_listed_no_more(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger, "gone")
    add_job(ledger, "here")
    redis_client.delete(*redis_client.keys(keys.job("gone", "*")))

    assert [status.job_id for status in ledger.jobs()] == ["here"]
    ledger.reconcile()
    assert redis_client.zrange(keys.JOBS, 0, -1) == ["here"]


def test_claims_forget_a_job_whose_time_is_up(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_finishing_job(ledger, "finishing")
    for name in ("gone", "here"):
        add_job(ledger, name)
    for name in ("finishing", "gone"):
        redis_client.delete(*redis_client.keys(keys.job(name, "*")))

    assert claim(ledger).job_id == "here"
    assert ledger.claim_finish(new_token(), 600) is None

    assert redis_client.exists(keys.FINISHING, keys.job("finishing"), keys.job("gone")) == 0
    assert redis_client.zrange(keys.lane_queue("normal", "demo"), 0, -1) == ["here"]


# --- workers ---


def test_a_worker_is_known_by_its_heartbeat(ledger: Ledger) -> None:
    facts = WorkerFacts("w1", "host", 7, ("demo", "one:x"), device="cuda")

    ledger.heartbeat(facts)
    ledger.heartbeat(facts)

    assert ledger.workers() == [facts]
    assert [facts.serves("one:x"), facts.serves("two:x")] == [True, False]


def test_a_worker_that_is_silent_is_listed_no_more_and_then_forgotten(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    ledger.heartbeat(WorkerFacts("quiet", "host", 7, ("demo",)))
    ledger.heartbeat(WorkerFacts("lively", "host", 8, ("demo",)))
    redis_client.zadd(keys.WORKERS, {"quiet": server_now_ms(redis_client) - 45_000})

    assert [facts.worker_id for facts in ledger.workers(silence_seconds=30)] == ["lively"]
    ledger.reconcile(worker_silence_seconds=60)
    assert len(ledger.workers(silence_seconds=50)) == 2
    ledger.reconcile(worker_silence_seconds=40)
    assert redis_client.hkeys(keys.WORKER_FACTS) == redis_client.zrange(keys.WORKERS, 0, -1) == ["lively"]


def test_a_worker_that_has_said_farewell_is_forgotten_at_once(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    for worker_id in ("gone", "here"):
        ledger.heartbeat(WorkerFacts(worker_id, "host", 7, ("demo",)))

    ledger.farewell("gone")
    ledger.farewell("gone")

    assert [facts.worker_id for facts in ledger.workers()] == ["here"]
    assert redis_client.hkeys(keys.WORKER_FACTS) == redis_client.zrange(keys.WORKERS, 0, -1) == ["here"]


# --- wait_for_progress ---


@pytest.mark.parametrize("protocol", [2, 3])
def test_who_waits_is_woken_by_the_next_chunk(ledger: Ledger, redis_url: str, protocol: int) -> None:
    add_job(ledger, chunks=2)
    complete(ledger, claim(ledger))
    waiter = Ledger(f"{redis_url}?protocol={protocol}")
    seen = waiter.wait_for_progress("job", "0", 5)
    news: list[str] = []
    thread = threading.Thread(target=lambda: news.append(waiter.wait_for_progress("job", seen, 5)))

    thread.start()
    complete(ledger, claim(ledger))
    thread.join(timeout=10)
    waiter.close()

    assert news
    assert news[0] != seen


def test_who_waits_in_vain_gets_the_same_mark_back(ledger: Ledger) -> None:
    add_job(ledger)

    mark = ledger.last_progress("job")
    assert ledger.wait_for_progress("job", mark, 0.05) == mark
    assert ledger.wait_for_progress("job", "0-7", 0) == "0-7"


def test_several_news_at_once_give_the_mark_of_the_last(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger, chunks=3)
    work_off(ledger)

    mark = ledger.wait_for_progress("job", "0", 1)

    assert mark == redis_client.xrevrange(keys.job("job", keys.STREAM), count=1)[0][0]


def test_what_comes_after_the_last_mark_is_not_missed_however_early_it_comes(ledger: Ledger) -> None:
    add_job(ledger, chunks=2)
    first = ledger.last_progress("job")
    complete(ledger, claim(ledger))

    assert ledger.wait_for_progress("job", first, 5) == ledger.last_progress("job") != first


@pytest.mark.parametrize("state", [JobState.COMPLETED, JobState.CANCELLED, JobState.FAILED])
def test_the_end_of_a_job_is_progress_too(ledger: Ledger, redis_client: redis.Redis, state: JobState) -> None:
    in_state(ledger, state)

    last = redis_client.xrevrange(keys.job("job", keys.STREAM), count=1)[0][1]

    assert last == {"state": state.value}


# --- how long things are kept ---


def test_every_key_has_a_ttl_at_every_stage_of_a_job(ledger: Ledger, redis_client: redis.Redis) -> None:
    def check() -> None:
        assert keys_without_ttl(redis_client) == []

    add_job(ledger, chunks=4, sealed=False)
    check()
    ledger.seal("job", 4, 40)
    done, lost, failed, waits = (claim(ledger) for _ in range(4))
    check()
    ledger.renew([lease(done)], 60)
    check()
    ledger.release(failed, "failures", reason="")
    ledger.release(waits, "waits", reason="store away")
    check()
    lose(ledger, redis_client, lost)
    check()
    complete(ledger, done, ok=9, failed=1)
    check()
    ledger.pause("job", "for a while")
    check()
    ledger.resume("job")
    let_back_offs_pass(redis_client, "job")
    work_off(ledger)
    check()
    ledger.postpone_finish(claim_finish(ledger), 0)
    check()
    ledger.heartbeat(WorkerFacts("w1", "host", 7, ("demo",)))
    ledger.finish(claim_finish(ledger), ttl_seconds=60)
    check()


def test_an_unfinished_job_is_kept_for_thirty_days(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger)

    assert redis_client.pttl(keys.job("job")) == pytest.approx(30 * DAY_MS, abs=60_000)


@pytest.mark.parametrize("end", ["finish", "cancel", "fail"])
def test_after_the_end_a_job_is_kept_as_long_as_asked(
    ledger: Ledger, redis_client: redis.Redis, end: str
) -> None:
    add_job(ledger)
    if end == "finish":
        complete(ledger, claim(ledger), ok=9, failed=1)
        ledger.finish(claim_finish(ledger), ttl_seconds=100)
    elif end == "cancel":
        ledger.cancel("job", ttl_seconds=100)
    else:
        ledger.fail("job", "no disk", ttl_seconds=100)

    ledger.submit(make_job())
    ledger.stage("job", 0, 1, 10)
    ledger.seal("job", 1, 10)

    names = redis_client.keys(keys.job("job", "*"))
    assert names
    assert all(0 < redis_client.pttl(name) <= 100_000 for name in names)


def age(client: redis.Redis) -> None:
    """29 days and 23 hours go by."""
    for name in client.keys(f"{keys.PREFIX}:*"):
        client.pexpire(name, DAY_MS // 24)


def old_keys(client: redis.Redis) -> list[str]:
    """Keys that end soon after `age`."""
    return sorted(name for name in client.keys(f"{keys.PREFIX}:*") if client.pttl(name) < DAY_MS)


def test_claims_alone_keep_alive_all_that_a_long_job_lives_on(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    add_job(ledger, chunks=3)
    claim(ledger)
    age(redis_client)

    claim(ledger)

    assert [name for name in old_keys(redis_client) if not name.startswith(keys.claim_token(""))] == []


@pytest.mark.parametrize("touch", ["claim", "stage", "seal", "pause", "complete", "release", "reconcile"])
def test_whatever_touches_a_job_keeps_alive_all_it_lives_on(
    ledger: Ledger, redis_client: redis.Redis, touch: str
) -> None:
    add_job(ledger, chunks=9, sealed=False)
    first, second, third, fourth = (claim(ledger) for _ in range(4))
    complete(ledger, first)
    ledger.release(second, "waits", reason="store away")
    age(redis_client)

    if touch == "reconcile":
        let_leases_expire(redis_client, ("job", third.chunk_id))
    calls = {
        "claim": lambda: claim(ledger),
        "stage": lambda: ledger.stage("job", 9, 1, 10),
        "seal": lambda: ledger.seal("job", 9, 90),
        "pause": lambda: ledger.pause("job", "for a while"),
        "complete": lambda: complete(ledger, fourth),
        "release": lambda: ledger.release(fourth, "failures", reason=""),
        "reconcile": lambda: ledger.reconcile(),
    }
    calls[touch]()

    assert [name for name in old_keys(redis_client) if not name.startswith(keys.claim_token(""))] == []


def test_a_finishing_that_is_tried_for_weeks_keeps_its_job_alive(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    add_finishing_job(ledger)
    age(redis_client)

    claim_finish(ledger)

    assert not {keys.FINISHING, keys.job("job"), keys.job("job", keys.STAGED)} & set(old_keys(redis_client))


# --- what a chunk costs ---

MAX_COMMANDS_PER_CHUNK = 28  # of a claim and a complete: what a chunk costs the server is its commands


@pytest.mark.parametrize("jobs", [1, 20])
def test_a_chunk_costs_the_same_few_commands_whatever_the_number_of_jobs_and_chunks(
    ledger: Ledger, redis_client: redis.Redis, jobs: int
) -> None:
    for number in range(jobs):
        add_job(ledger, f"job-{number}", chunks=200)
    for _ in range(2 * jobs):
        complete(ledger, claim(ledger))
    redis_client.config_resetstat()

    for _ in range(100):
        ledger.complete(claim(ledger), ok=10, failed=0, codes={}, work_seconds={"fetch": 1.5, "write": 0.5})

    ours = {"info", "config", "ping", "hello", "client", "auth", "select"}
    statistics = redis_client.info("commandstats").items()
    calls = {
        name: facts["calls"] for name, facts in statistics if name.split("_")[1].split("|")[0] not in ours
    }
    assert sum(calls.values()) <= 100 * MAX_COMMANDS_PER_CHUNK, calls


def test_counts_and_seconds_of_chunks_add_up(ledger: Ledger) -> None:
    add_job(ledger, chunks=3)
    for ok, seconds in ((10**12, 0.1), (1, 0.2), (1, 1e6)):
        stages = {"fetch": seconds, "write": 0.000001}
        ledger.complete(claim(ledger), ok=ok, failed=2, codes={"timeout": 2}, work_seconds=stages)

    status = ledger.status("job")

    assert (status.ok, status.failed, status.done_chunks) == (10**12 + 2, 6, 3)
    assert status.work_seconds == pytest.approx({"fetch": 1_000_000.3, "write": 0.000003})


# --- when the server is not what it was ---


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    """A server that a test may kill."""
    with EmbeddedValkey(tmp_path / "valkey") as server:
        yield server


def test_a_server_that_forgot_the_scripts_gets_them_again(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger)
    redis_client.script_flush()

    assert claim(ledger).chunk_id == 0


def test_what_the_server_acknowledged_is_there_after_its_restart(server: EmbeddedValkey) -> None:
    ledger = Ledger(server.url)
    add_job(ledger, chunks=3)
    claimed = claim(ledger, token="delivery-1")

    server.stop()
    server.start()

    assert claim(ledger, token="delivery-1").chunk_id == claimed.chunk_id
    assert complete(ledger, claimed) == "done"
    assert [found.chunk_id for found in work_off(ledger)] == [1, 2]
    ledger.close()


def test_a_server_that_is_away_is_named_without_its_password(server: EmbeddedValkey) -> None:
    password = connect(server.url).connection_pool.connection_kwargs["password"]
    ledger = Ledger(server.url)
    ledger.ping()
    server.child.kill()

    for call in (ledger.ping, lambda: ledger.status("job"), lambda: ledger.jobs(), lambda: ledger.workers()):
        with pytest.raises(
            RedisUnavailableError, match=r"Redis at redis://\*\*\*@127\.0\.0\.1:\d+/0: "
        ) as raised:
            call()
        assert password not in str(raised.value)
    ledger.close()


def test_a_wrong_password_is_a_hint_at_the_setting_and_not_shown(redis_url: str) -> None:
    address = redis_url.rpartition("@")[2]
    ledger = Ledger(f"redis://:wr0ng-secret@{address}")

    with pytest.raises(
        RedisUnavailableError, match="check user and password in CLIPFLEET_REDIS_URL"
    ) as raised:
        ledger.ping()

    assert "wr0ng-secret" not in str(raised.value)
    ledger.close()


# --- what newer versions add ---


def test_a_claim_knows_the_span_of_its_submit(ledger: Ledger) -> None:
    ledger.submit(make_job(), traceparent="00-trace-span-01")
    ledger.stage("job", 0, 1, 10)
    ledger.submit(make_job(), traceparent="00-another-one-01")  # it goes on with an old one
    add_job(ledger, "other")

    claims = {claimed.job_id: claimed for claimed in (claim(ledger), claim(ledger))}

    assert claims["job"].traceparent == "00-trace-span-01"
    assert claims["other"].traceparent == ""
    assert claim_again(ledger, claims["job"]) == claims["job"]


def claim_again(ledger: Ledger, claimed: Claim) -> Claim:
    """The same question once more, as after a lost answer."""
    return replace(claim(ledger, token=claimed.token), more=claimed.more)


def test_fields_of_a_newer_version_are_passed_over(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger)
    redis_client.hset(keys.job("job"), mapping={"of_tomorrow": "1", "seconds:of_tomorrow": "2.5"})

    assert ledger.status("job").chunks == 1
    assert complete(ledger, claim(ledger)) == "finishing"
    assert ledger.backlog().jobs[JobState.FINISHING] == 1


# --- the backlog of all jobs ---


def test_the_backlog_counts_what_waits_and_runs(ledger: Ledger, redis_client: redis.Redis) -> None:
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


def test_the_backlog_of_nothing_is_empty(ledger: Ledger) -> None:
    backlog = ledger.backlog()

    assert set(backlog.lanes.values()) == {LaneBacklog()}
    assert set(backlog.jobs.values()) == {0}
    assert (backlog.oldest_due_seconds, backlog.outage_seconds) == (0, 0)


def test_the_backlog_is_counted_once_in_a_while_whoever_asks(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    add_job(ledger, chunks=3)
    before = ledger.backlog(600)
    work_off(ledger)

    assert ledger.backlog(600) == before
    redis_client.delete(keys.BACKLOG)  # that time passes
    assert ledger.backlog(600).lanes[Lane.NORMAL] == LaneBacklog()


def test_the_backlog_knows_how_long_a_chunk_has_waited_for_anybody(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    def oldest() -> float:
        redis_client.delete(keys.BACKLOG)
        return ledger.backlog().oldest_due_seconds

    add_job(ledger, chunks=2)
    now_ms = server_now_ms(redis_client)
    redis_client.hset(keys.job("job"), "created_ms", now_ms - DAY_MS)
    assert oldest() == pytest.approx(86_400, abs=60)  # of a job that nobody ever came to

    first = claim(ledger)
    assert oldest() == 0
    ledger.release(first, "drain", reason="", first_back_off_seconds=3600)
    redis_client.zadd(keys.job("job", keys.DUE), {"0": now_ms + DAY_MS})
    assert oldest() == 0  # it is not due yet
    redis_client.zadd(keys.job("job", keys.DUE), {"0": now_ms - DAY_MS / 2})
    assert oldest() == pytest.approx(43_200, abs=60)


def test_the_backlog_knows_the_longest_outage(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger, chunks=2)
    ledger.release(claim(ledger), "waits", reason="store away")
    redis_client.hset(keys.job("job"), "outage_since", server_now_ms(redis_client) - DAY_MS)

    assert ledger.backlog().outage_seconds == pytest.approx(86_400, abs=60)


@pytest.mark.parametrize("planted", ["", "[]", "{}", '{"lanes": 7}', "[" * 100_000, "no JSON", ["a", "list"]])
def test_whatever_stands_in_the_place_of_the_backlog_it_is_counted_anew(
    ledger: Ledger, redis_client: redis.Redis, planted: str | list[str]
) -> None:
    add_job(ledger, chunks=3)
    if isinstance(planted, list):
        redis_client.rpush(keys.BACKLOG, *planted)
    else:
        redis_client.set(keys.BACKLOG, planted)

    assert ledger.backlog().lanes[Lane.NORMAL].queued_chunks == 3


def test_jobs_that_were_put_there_by_hand_do_not_keep_others_from_being_counted(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
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
