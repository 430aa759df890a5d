"""Who may still be inside a write of a job without a lease: an overwrite waits for them and nobody else."""

from __future__ import annotations

import time

import pytest
import redis

from clipfleet.contract.jobs import JobState
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import Claim, Lease, Ledger
from tests.support import ledger as steps
from tests.support.ledger import add_job, claim, claim_finish, complete, let_finish_claims_expire


def writers(ledger: Ledger) -> int:
    return ledger.writers("job", 100)[0]


def test_an_unknown_token_does_not_count_by_renewing(ledger: Ledger) -> None:
    add_job(ledger)
    held = claim(ledger)
    ledger.cancel("job", ttl_seconds=600)
    ledger.release(held, "drain", reason="cancelled")

    assert ledger.renew([Lease("job", "0", "nobody")], 600) == ["cancelled"]
    assert writers(ledger) == 0


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
