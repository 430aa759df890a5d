"""Who may still be inside a write of a job without a lease: an overwrite waits for them and nobody else."""

from __future__ import annotations

import time

import pytest
import redis

from clipfleet.contract.jobs import JobState
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import Claim, Lease, Ledger
from tests.support import ledger as steps
from tests.support.ledger import add_job, claim, claim_finish, complete, lease_of, let_finish_claims_expire

WRITE_LIMIT_SECONDS = 100.0
LEASE_SECONDS = 600.0  # of `claim`


def writers(ledger: Ledger) -> int:
    return ledger.writers("job", WRITE_LIMIT_SECONDS)[0]


@pytest.fixture
def held(ledger: Ledger) -> list[Claim]:
    """The chunks of a job that was cancelled while three of its four were leased."""
    add_job(ledger, chunks=4)
    claims = [claim(ledger) for _ in range(3)]
    assert writers(ledger) == 0
    ledger.cancel("job", ttl_seconds=600)
    return claims


class TestEarlyEnd:
    def test_those_that_held_a_chunk_are_writers_until_lease_and_write_limit_are_over(
        self, ledger: Ledger, held: list[Claim]
    ) -> None:
        count, seconds = ledger.writers("job", WRITE_LIMIT_SECONDS)

        assert count == 3
        assert LEASE_SECONDS < seconds <= WRITE_LIMIT_SECONDS + LEASE_SECONDS
        assert ledger.writers("job", -LEASE_SECONDS) == (0, 0)

    def test_workers_that_have_reported_their_stop_do_not_count(
        self, ledger: Ledger, held: list[Claim]
    ) -> None:
        released, written, failed = held
        assert ledger.release(released, "drain", reason="cancelled") == "not_held"
        assert complete(ledger, written) == "cancelled"
        assert writers(ledger) == 1
        ledger.fail("job", "no disk", ttl_seconds=600, holder=failed)
        assert writers(ledger) == 0
        assert ledger.status("job").state is JobState.CANCELLED

    def test_a_living_worker_that_has_not_stopped_counts(
        self, ledger: Ledger, redis_client: redis.Redis, held: list[Claim]
    ) -> None:
        # Given two workers, one of which was heard of last when its lease was about to end
        alive, silent = map(lease_of, held[:2])
        for token, deadline in ((held[0].token, 1), (held[1].token, 1), (held[2].token, 1)):
            redis_client.zadd(keys.job("job", keys.WRITERS), {token: deadline})
        assert writers(ledger) == 0

        assert ledger.renew([alive], LEASE_SECONDS) == ["cancelled"]

        assert writers(ledger) == 1
        assert silent.token != alive.token

    def test_an_unknown_token_does_not_count_by_renewing(self, ledger: Ledger, held: list[Claim]) -> None:
        for one in held:
            ledger.release(one, "drain", reason="cancelled")
        assert ledger.renew([Lease("job", "0", "nobody")], LEASE_SECONDS) == ["cancelled"]
        assert writers(ledger) == 0

    def test_workers_look_for_it(self, ledger: Ledger) -> None:
        before = ledger.last_early_end()
        add_job(ledger, chunks=1)
        steps.work_off(ledger)
        ledger.finish(claim_finish(ledger), ttl_seconds=600)
        assert ledger.last_early_end() == before  # an ordinary end is no reason to look

        add_job(ledger, "other", chunks=1)
        ledger.cancel("other", ttl_seconds=600)
        assert ledger.last_early_end() != before


def test_a_worker_that_failed_its_job_writes_no_more(ledger: Ledger) -> None:
    add_job(ledger, chunks=2)
    claims = [claim(ledger), claim(ledger)]
    ledger.fail("job", "no disk", ttl_seconds=600, holder=claims[0])
    assert ledger.status("job").state is JobState.FAILED
    assert writers(ledger) == 1


class TestLostLeases:
    """A worker that was frozen may go on inside a write, whatever became of its job."""

    @pytest.fixture
    def lost(self, ledger: Ledger, redis_client: redis.Redis) -> Claim:
        add_job(ledger, chunks=1)
        lost = claim(ledger)
        steps.let_leases_expire(redis_client)
        assert ledger.reconcile(0.0)[0] == 1
        return lost

    def test_of_a_job_that_was_completed_by_others(self, ledger: Ledger, lost: Claim) -> None:
        assert complete(ledger, claim(ledger)) == "finishing"
        ledger.finish(claim_finish(ledger), ttl_seconds=600)
        assert writers(ledger) == 1

        assert complete(ledger, lost) == "already"
        assert writers(ledger) == 0

    def test_one_that_has_come_through_all_the_same(self, ledger: Ledger, lost: Claim) -> None:
        assert complete(ledger, lost) == "finishing"
        assert writers(ledger) == 0

    def test_it_cannot_end_the_job_while_another_worker_has_the_chunk(
        self, ledger: Ledger, lost: Claim
    ) -> None:
        ledger.fail("job", "no disk", ttl_seconds=600, holder=lost)

        assert ledger.status("job").state is JobState.RUNNING
        assert complete(ledger, claim(ledger)) == "finishing"

    def test_nor_can_one_whose_finishing_was_taken_over(
        self, ledger: Ledger, redis_client: redis.Redis, lost: Claim
    ) -> None:
        complete(ledger, lost)
        late = claim_finish(ledger)
        let_finish_claims_expire(redis_client)
        claim_finish(ledger)
        assert writers(ledger) == 1

        ledger.fail("job", "no disk", ttl_seconds=600, holder=late)

        assert ledger.status("job").state is JobState.FINISHING
        assert ledger.postpone_finish(late, 0) == "not_held"
        assert writers(ledger) == 0


def test_rows_in_redis_have_no_writers(ledger: Ledger) -> None:
    add_job(ledger, job=steps.make_job(output="redis://"))
    claim(ledger)
    ledger.cancel("job", ttl_seconds=600)
    assert writers(ledger) == 0


def test_workers_that_stay_silent_are_removed(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger, chunks=1)
    claim(ledger)
    long_ago = (time.time() - 3 * 3600) * 1000
    redis_client.zadd(keys.job("job", keys.WRITERS), {f"dead-{n}": long_ago for n in range(3)})

    ledger.cancel("job", ttl_seconds=600)

    assert redis_client.zcard(keys.job("job", keys.WRITERS)) == 1
