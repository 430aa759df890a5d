"""What chunks have measured, kept apart and summed up now and then; what a chunk costs the server."""

from __future__ import annotations

import json

import pytest
import redis

from clipfleet.contract.bottleneck import Meters
from clipfleet.contract.jobs import JobState
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import Claim, Ledger
from tests.support.ledger import add_job, claim, complete, lose


def measured(ledger: Ledger, claimed: Claim, meters: Meters) -> str:
    return ledger.complete(claimed, ok=10, failed=0, codes={}, work_seconds={}, meters=meters)


def test_many_reports_show_at_once_and_take_few_fields(ledger: Ledger, redis_client: redis.Redis) -> None:
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


def test_an_ended_job_has_every_report_in_its_sums(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger, chunks=3)
    measured(ledger, claim(ledger), Meters({"write": 1.0}))
    measured(ledger, claim(ledger), Meters({"write": 0.5}))
    ledger.cancel("job", ttl_seconds=60)

    facts = redis_client.hgetall(keys.job("job"))

    assert json.loads(facts["meters"]) == {"write": 1.5}
    assert not [name for name in facts if name.startswith("measured:")]


def test_sums_of_an_earlier_version_continue(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger, chunks=2)
    before = {"seconds:fetch": "0.500000", "meters": json.dumps({"write": 2.0})}
    redis_client.hset(keys.job("job"), mapping=before)

    meters = Meters({"write": 1.5})
    ledger.complete(claim(ledger), ok=16, failed=0, codes={}, work_seconds={"fetch": 1.5}, meters=meters)

    running = ledger.status("job")
    ledger.cancel("job", ttl_seconds=60)
    for status in (running, ledger.status("job")):
        assert status.work_seconds == {"fetch": 2.0}
        assert status.meters == Meters({"write": 3.5})


def test_a_chunk_that_is_completed_late_leaves_no_troubles(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger, chunks=2)
    first = claim(ledger)
    lose(ledger, redis_client, first)
    assert claim(ledger).losses == 1

    assert complete(ledger, first) == "done"

    assert not redis_client.exists(keys.job("job", keys.TROUBLES))


MAX_COMMANDS_PER_CHUNK = 28  # of a claim and a complete: what a chunk costs the server is its commands


@pytest.mark.parametrize("jobs", [1, 20])
def test_a_chunk_costs_the_same_few_commands(ledger: Ledger, redis_client: redis.Redis, jobs: int) -> None:
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
