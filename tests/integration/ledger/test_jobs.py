"""Jobs as Redis holds them: of other versions, expired, and in which order they are listed."""

from __future__ import annotations

import json
from contextlib import closing

import pytest
import redis

from clipfleet.commands.options import job_ids
from clipfleet.contract.brief import JobBrief
from clipfleet.contract.jobs import JobState, Task
from clipfleet.contract.label_sets import LabelSet
from clipfleet.errors import JobConflictError
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import Ledger, WorkerFacts
from clipfleet.redis.connection import connect
from tests.support import ledger as steps
from tests.support.ledger import add_finishing_job, add_job, claim, claim_finish, complete, make_job


def test_a_conflict_with_a_job_of_another_version_says_so(ledger: Ledger, redis_client: redis.Redis) -> None:
    ledger.submit(make_job())
    redis_client.hset(keys.job("job"), "fingerprint", "of-tomorrow")
    redis_client.set(keys.job("job", keys.SPEC), '{"new_field": 1}', keepttl=True)

    with pytest.raises(JobConflictError, match="written by another version of clipfleet"):
        ledger.submit(make_job())


def test_a_job_of_an_earlier_version_continues(ledger: Ledger, redis_client: redis.Redis) -> None:
    job = add_job(ledger, job=make_job("job").model_copy(update={"on_finished": "myapp.handle"}))
    spec = redis_client.getdel(keys.job(job.job_id, keys.SPEC))
    redis_client.hset(keys.job(job.job_id), "spec", spec)  # type: ignore[arg-type]  # where earlier versions had it

    ledger.reconcile()

    assert ledger.job(job.job_id) == job
    assert ledger.submit(job) == (False, JobState.RUNNING)
    complete(ledger, claim(ledger), ok=10)
    ledger.finish(claim_finish(ledger), ttl_seconds=60)
    assert ledger.status(job.job_id).state is JobState.COMPLETED
    assert redis_client.zcard(keys.ANNOUNCEMENTS) == 1


def test_fields_of_a_newer_version_are_ignored(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger)
    redis_client.hset(keys.job("job"), mapping={"of_tomorrow": "1", "seconds:of_tomorrow": "2.5"})

    assert ledger.status("job").chunks == 1
    assert complete(ledger, claim(ledger)) == "finishing"
    assert ledger.backlog().jobs[JobState.FINISHING] == 1


def test_nothing_is_left_of_silent_or_ended_workers(ledger: Ledger, redis_client: redis.Redis) -> None:
    for worker_id in ("silent", "ended", "here"):
        ledger.heartbeat(WorkerFacts(worker_id, "host", 7, ("demo",)))
    redis_client.zadd(keys.WORKERS, {"silent": steps.server_now_ms(redis_client) - 45_000})

    ledger.farewell("ended")
    ledger.reconcile(worker_silence_seconds=40)

    assert redis_client.hkeys(keys.WORKER_FACTS) == redis_client.zrange(keys.WORKERS, 0, -1) == ["here"]


def test_the_newest_jobs_come_first(ledger: Ledger, redis_client: redis.Redis) -> None:
    for age, name in enumerate(["c", "a", "b"]):
        add_job(ledger, name)
        redis_client.zadd(keys.JOBS, {name: 1_000 - age})

    assert [status.job_id for status in ledger.jobs()] == ["c", "a", "b"]
    assert [status.job_id for status in ledger.jobs(limit=2)] == ["c", "a"]


def test_an_expired_job_is_not_listed(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger, "gone")
    add_job(ledger, "here")
    redis_client.delete(*redis_client.keys(keys.job("gone", "*")))

    assert [status.job_id for status in ledger.jobs()] == ["here"]
    ledger.reconcile()
    assert redis_client.zrange(keys.JOBS, 0, -1) == ["here"]


class CountedRoundTrips(redis.Connection):
    """A connection that counts what is sent at once."""

    count = 0

    def send_packed_command(self, command: object, check_health: bool = True) -> None:
        CountedRoundTrips.count += 1
        super().send_packed_command(command, check_health)  # type: ignore[no-untyped-call]


def test_fifty_jobs_of_many_labels_are_read_in_two_round_trips_and_few_bytes(
    ledger: Ledger, redis_client: redis.Redis, redis_url: str
) -> None:
    sets = (LabelSet(labels=tuple(f"label number {number}" for number in range(3_000))),)
    for number in range(50):
        job = make_job(f"job-{number}", output=f"/out/{number}")
        ledger.submit(job.model_copy(update={"task": Task.CLASSIFY, "label_sets": sets}))
    with connect(redis_url) as client:
        client.connection_pool.connection_class = CountedRoundTrips
        with closing(Ledger(redis_url, client=client)) as counted:
            counted.ping()
            sent_before = redis_client.info("stats")["total_net_output_bytes"]
            CountedRoundTrips.count = 0

            found = counted.jobs(50)

    assert CountedRoundTrips.count <= 2
    assert redis_client.info("stats")["total_net_output_bytes"] - sent_before < 200_000
    words = "label number 0, label number 1 and 2,998 more"
    assert {status.brief for status in found} == {
        JobBrief("classify", "/images", f"/out/{number}", words) for number in range(50)
    }


def test_unfinished_jobs_among_thousands_are_read_in_two_round_trips(
    ledger: Ledger, redis_client: redis.Redis, redis_url: str
) -> None:
    """Those whose items are in Redis stay in the index when they have ended with errors."""
    for number in range(150):
        add_job(ledger, f"job-{number}")
    with redis_client.pipeline(transaction=False) as pipe:
        for number in range(2_000):
            pipe.hset(keys.job(f"old-{number}"), mapping={"state": "completed_with_errors"})
            pipe.expire(keys.job(f"old-{number}"), 60)
            pipe.zadd(keys.COUNTED, {f"old-{number}": 10**15 + number})
        pipe.execute()
    with connect(redis_url) as client:
        client.connection_pool.connection_class = CountedRoundTrips
        with closing(Ledger(redis_url, client=client)) as counted:
            counted.unfinished()  # the server has the script now
            CountedRoundTrips.count = 0

            found = counted.unfinished()

    assert CountedRoundTrips.count == 2
    assert ([*{one.state for one in found.jobs}], len(found.jobs)) == ([JobState.RUNNING], 100)
    assert found.left_out == 50


@pytest.mark.parametrize(
    ("spec", "brief"),
    [
        ("as it was", JobBrief("embed", "/images", "/out", "")),
        ("", None),
        (None, None),
        (json.dumps({"schema_version": 10**6, "task": "of tomorrow"}), None),
        ("[" * 100_000, None),
        (b"\xff", None),
    ],
)
def test_a_job_without_a_brief_is_listed_with_what_is_known(
    ledger: Ledger, redis_client: redis.Redis, spec: str | bytes | None, brief: JobBrief | None
) -> None:
    """Only one with a long description has a brief, and none that an older version has submitted."""
    for name in ("odd", "sound"):
        add_job(ledger, name)
    if spec is None:
        redis_client.delete(keys.job("odd", keys.SPEC))
        redis_client.rpush(keys.job("odd", keys.SPEC), "a list")
        redis_client.expire(keys.job("odd", keys.SPEC), 60)
    elif spec != "as it was":
        redis_client.set(keys.job("odd", keys.SPEC), spec, keepttl=True)

    found = {status.job_id: status for status in ledger.jobs()}

    assert (found["odd"].brief, found["odd"].total) == (brief, 10)
    assert found["sound"].brief == JobBrief("embed", "/images", "/out", "")


def test_names_of_jobs_are_completed(ledger: Ledger, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPFLEET_REDIS_URL", redis_url)
    assert job_ids("") == []
    add_job(ledger, "lake")

    assert [job_ids(typed) for typed in ("", "la", "las", "x")] == [["lake", "last"]] * 2 + [["last"], []]


@pytest.mark.parametrize("planted", ["", "[]", "7", "{", "[" * 100_000, '{"task": "embed"}'])
def test_a_planted_brief_hides_no_job(ledger: Ledger, redis_client: redis.Redis, planted: str) -> None:
    add_job(ledger)
    redis_client.hset(keys.job("job"), "brief", planted)

    assert [(status.job_id, status.brief) for status in ledger.jobs()] == [("job", None)]


def test_claims_remove_an_expired_job(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_finishing_job(ledger, "finishing")
    for name in ("gone", "here"):
        add_job(ledger, name, chunks=2)
    for name in ("finishing", "gone"):
        redis_client.delete(*redis_client.keys(keys.job(name, "*")))

    assert claim(ledger).job_id == "here"
    assert ledger.claim_finish(steps.new_token(), 600) is None

    assert redis_client.exists(keys.FINISHING, keys.job("finishing"), keys.job("gone")) == 0
    assert redis_client.zrange(keys.lane_queue("normal", "demo"), 0, -1) == ["here"]


def test_a_claim_that_finds_nothing_writes_nothing(ledger: Ledger, redis_client: redis.Redis) -> None:
    assert steps.try_claim(ledger) is None

    assert redis_client.keys("*") == []


@pytest.mark.parametrize("protocol", [2, 3])
def test_progress_is_read_in_either_protocol(ledger: Ledger, redis_url: str, protocol: int) -> None:
    add_job(ledger)
    complete(ledger, claim(ledger))

    with closing(Ledger(f"{redis_url}?protocol={protocol}")) as waiter:
        assert waiter.wait_for_progress("job", "0", 5) == ledger.last_progress("job")
