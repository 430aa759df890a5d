"""What a producer plants in Redis by hand: a worker's loops live on, and do what else there is to do."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import redis

from clipfleet import keys
from clipfleet.announcements import Announcements
from clipfleet.bottleneck import NO_METERS, Meters
from clipfleet.errors import JobUnreadableError
from clipfleet.hints import make_app
from clipfleet.ledger import Claim, Ledger
from clipfleet.ledger_values import WorkerFacts
from clipfleet_worker.announcer import Announcer
from tests.support.ledger import MODEL, claim, let_leases_expire, make_job

NO_JSON = ["garbage", "[]", "17", "[" * 100_000]
EVENT = {"job_id": "a", "generation": 0}
ME = WorkerFacts("me", "here", 1, ("demo",))


def measured(ledger: Ledger, claimed: Claim, meters: Meters) -> str:
    return ledger.complete(claimed, ok=10, failed=0, codes={}, stage_seconds={}, meters=meters)


def announcement(**values: object) -> str:
    return json.dumps({"task": "myapp.handle", "queue": "celery", "event": EVENT} | values)


@pytest.fixture
def announcer(redis_url: str) -> Iterator[Announcer]:
    app = make_app(redis_url)
    announcer = Announcer(Announcements(redis_url), app)
    yield announcer
    announcer.stop()
    app.close()


@pytest.mark.parametrize(
    "planted",
    [
        *NO_JSON,
        "{}",
        announcement(event={}),
        announcement(event=7),
        announcement(task=7),
        announcement(task="a\nb"),
        announcement(queue="clipfleet:jobs"),
        announcement(queue="unacked"),
        announcement(queue=None),
    ],
)
def test_what_is_no_announcement_is_dropped_and_the_next_one_sent(
    announcer: Announcer, redis_client: redis.Redis, planted: str
) -> None:
    redis_client.zadd(keys.ANNOUNCEMENTS, {planted: 0, announcement(): 1})

    assert announcer.announce()

    assert redis_client.llen("celery") == 1
    assert not redis_client.exists(keys.ANNOUNCEMENTS)


@pytest.mark.parametrize(
    "planted", [*NO_JSON, '{"models": 7}', '{"models": [7]}', '{"pid": "x"}', '{"host": []}']
)
def test_what_no_worker_has_said_of_itself_hides_no_worker(
    ledger: Ledger, redis_client: redis.Redis, planted: str
) -> None:
    ledger.heartbeat(ME)
    redis_client.zadd(keys.WORKERS, {"planted": 10**15})
    redis_client.hset(keys.WORKER_FACTS, "planted", planted)

    assert ledger.workers() == [ME]


@pytest.mark.parametrize("planted", ["", ":", "garbage", "a:b:c", "nobody:1", "job:finish"])
def test_a_lease_of_nothing_does_not_keep_others_from_being_taken_back(
    ledger: Ledger, redis_client: redis.Redis, planted: str
) -> None:
    ledger.submit(make_job("job"))
    ledger.stage("job", 0, 1, 10)
    claim(ledger)
    let_leases_expire(redis_client, ("job", 0))
    redis_client.zadd(keys.LEASES, {planted: 0})

    lost, _ = ledger.reconcile(lease_seconds=30)

    assert lost == 1
    assert not redis_client.exists(keys.LEASES)


def test_a_job_that_nobody_submitted_hides_no_job(ledger: Ledger, redis_client: redis.Redis) -> None:
    ledger.submit(make_job("job"))
    for name, facts in (("half", {"state": "running"}), ("[/x]", {"state": "?"})):
        redis_client.zadd(keys.JOBS, {name: 10**15})
        redis_client.hset(keys.job(name), mapping=facts)
        redis_client.expire(keys.job(name), 60)

    assert [status.job_id for status in ledger.jobs()] == ["job"]
    with pytest.raises(JobUnreadableError, match="not of clipfleet"):
        ledger.status("half")


SOUND = {
    "state": "running", "generation": "0", "chunk_size": "10", "created_ms": "1", "fingerprint": "f",
    "lane": "normal", "model": MODEL, "staged_chunks": "1",
}  # fmt: skip


@pytest.mark.parametrize(
    "facts", [{**SOUND, missing: ""} for missing in ("generation", "chunk_size", "created_ms")] + [
        {"state": "running", "staged_chunks": "5"},
        {**SOUND, "next_chunk": "x"},
        {**SOUND, "staged_chunks": "x"},
        {**SOUND, "last_file": "x"},
        SOUND,  # without a staged file
    ],
)  # fmt: skip
def test_a_job_that_nobody_submitted_keeps_nobody_from_being_claimed(
    ledger: Ledger, redis_client: redis.Redis, facts: dict[str, str]
) -> None:
    _plant_job(redis_client, "planted", facts)
    ledger.submit(make_job("job"))
    ledger.stage("job", 0, 1, 10)

    assert claim(ledger).job_id == "job"


@pytest.mark.parametrize("suffix", ["", keys.DUE, keys.STAGED, keys.OWNERS, keys.TROUBLES])
def test_keys_of_another_kind_keep_nobody_from_being_claimed(
    ledger: Ledger, redis_client: redis.Redis, suffix: str
) -> None:
    _plant_job(redis_client, "planted", SOUND)
    redis_client.delete(keys.job("planted", suffix))
    redis_client.set(keys.job("planted", suffix), "no such thing", ex=60)
    ledger.submit(make_job("job"))
    ledger.stage("job", 0, 1, 10)

    assert claim(ledger).job_id == "job"


@pytest.mark.parametrize("suffix", [keys.DUE, keys.STAGED])
def test_what_is_no_chunk_and_no_staged_file_keeps_nobody_from_being_claimed(
    ledger: Ledger, redis_client: redis.Redis, suffix: str
) -> None:
    _plant_job(redis_client, "planted", SOUND)
    redis_client.zadd(keys.job("planted", suffix), {"x": 0})
    redis_client.expire(keys.job("planted", suffix), 60)
    ledger.submit(make_job("job"))
    ledger.stage("job", 0, 1, 10)

    assert claim(ledger).job_id == "job"


def _plant_job(client: redis.Redis, job_id: str, facts: dict[str, str]) -> None:
    client.hset(keys.job(job_id), mapping=facts)
    client.expire(keys.job(job_id), 60)
    client.zadd(keys.lane_queue("normal", MODEL), {job_id: -1})
    client.expire(keys.lane_queue("normal", MODEL), 60)


@pytest.mark.parametrize("suffix", ["", keys.DUE, keys.OWNERS, keys.TROUBLES])
def test_keys_of_another_kind_do_not_keep_others_from_being_taken_back(
    ledger: Ledger, redis_client: redis.Redis, suffix: str
) -> None:
    for job_id in ("planted", "sound"):
        ledger.submit(make_job(job_id))
        ledger.stage(job_id, 0, 1, 10)
        claim(ledger)
    let_leases_expire(redis_client)
    redis_client.delete(keys.job("planted", suffix))
    redis_client.set(keys.job("planted", suffix), "no such thing", ex=60)

    ledger.reconcile(lease_seconds=30)

    assert ledger.status("sound").due_chunks == 1
    assert not redis_client.exists(keys.LEASES)


def test_a_job_without_a_lane_does_not_keep_others_from_being_taken_back(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    ledger.submit(make_job("job"))
    ledger.stage("job", 0, 1, 10)
    claim(ledger)
    let_leases_expire(redis_client, ("job", 0))
    redis_client.hset(keys.job("planted"), "state", "running")
    redis_client.expire(keys.job("planted"), 60)
    redis_client.zadd(keys.LEASES, {"planted:0": 0})

    lost, _ = ledger.reconcile(lease_seconds=30)

    assert lost == 1
    assert not redis_client.exists(keys.LEASES)


STAGES = {f"stage-{i}": 1 for i in range(10_000)}


@pytest.mark.parametrize(
    "facts",
    [{"max_error_rate": "x"}, {"measured": "1", "measured:0": json.dumps({"seconds": STAGES})}],
    ids=["rate", "stages"],
)
def test_facts_of_nobodys_making_do_not_keep_a_job_from_its_end(
    ledger: Ledger, redis_client: redis.Redis, facts: dict[str, str]
) -> None:
    ledger.submit(make_job("job"))
    ledger.stage("job", 0, 1, 10)
    ledger.seal("job", 1, 10)
    redis_client.hset(keys.job("job"), mapping=facts)

    assert measured(ledger, claim(ledger), Meters({"write": 1.5})) == "finishing"


def test_measures_of_nobody_keep_no_chunk_open_and_no_job_unseen(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    junk = [
        "garbage",
        "[",
        "[]",
        "[1.5]",
        '{"seconds": 7}',
        '{"seconds": {"fetch": "x"}}',
        '{"meters": {"write": []}}',
    ]
    ledger.submit(make_job("job"))
    ledger.stage("job", 0, 16, 160)
    redis_client.hset(keys.job("job"), mapping={f"measured:{i}": text for i, text in enumerate(junk)})
    redis_client.hset(keys.job("job"), "measured", len(junk))

    assert ledger.status("job").meters == NO_METERS
    for _ in range(16):
        assert measured(ledger, claim(ledger), Meters({"write": 1.5})) == "done"

    assert ledger.status("job").meters == Meters({"write": 24.0})


@pytest.mark.parametrize("count", ["1e300", "-1", "nan", "x"])
def test_a_count_of_nobodys_making_costs_nothing(
    ledger: Ledger, redis_client: redis.Redis, count: str
) -> None:
    ledger.submit(make_job("job"))
    ledger.stage("job", 0, 2, 20)
    redis_client.hset(keys.job("job"), "measured", count)

    for _ in range(2):
        assert ledger.status("job").ok <= 10
        assert measured(ledger, claim(ledger), Meters({"write": 1.5})) == "done"
