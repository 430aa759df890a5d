"""What a producer plants in Redis by hand: a worker's loops live on, and do what else there is to do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from itertools import islice

import pytest
import redis

from clipfleet.contract.bottleneck import NO_METERS, Meters
from clipfleet.contract.jobs import JobState
from clipfleet.errors import JobUnreadableError
from clipfleet.hints import make_app
from clipfleet.ledger import keys
from clipfleet.ledger.errands import Errands
from clipfleet.ledger.jobs import Claim, LeaseReport, Ledger
from clipfleet.ledger.row_store import RedisStore
from clipfleet.ledger.values import WorkerFacts
from clipfleet_worker.finish.errands import Announcer
from tests.support import ledger as steps
from tests.support import planting
from tests.support.ledger import MODEL, add_job, claim, complete, draft, ends, let_leases_expire, make_job
from tests.support.planting import SITUATIONS, Case, Plant, World, fields_of_job, kinds_of_job, members_of_job

NO_JSON = ["garbage", "[]", "17", "[" * 100_000]
EVENT = {"job_id": "a", "generation": 0}
ME = WorkerFacts("me", "here", 1, ("demo",))


def measured(ledger: Ledger, claimed: Claim) -> str:
    meters = Meters({"write": 1.5})
    return ledger.complete(claimed, ok=10, failed=0, codes={}, work_seconds={}, meters=meters)


def _stages(count: int) -> str:
    return json.dumps({"seconds": {f"stage-{number}": 1 for number in range(count)}})


def announcement(**values: object) -> str:
    return json.dumps({"task": "myapp.handle", "queue": "celery", "event": EVENT} | values)


@pytest.fixture
def announcer(redis_url: str) -> Iterator[Announcer]:
    app = make_app(redis_url)
    with closing(Errands(redis_url)) as errands:
        yield Announcer(errands, app)
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
def test_junk_delays_no_announcement(announcer: Announcer, redis_client: redis.Redis, planted: str) -> None:
    redis_client.zadd(keys.ANNOUNCEMENTS, {planted: 0, announcement(): 1})

    announcer.run_once()

    assert redis_client.llen("celery") == 1
    assert not redis_client.exists(keys.ANNOUNCEMENTS)


@pytest.mark.parametrize(
    "planted",
    [*NO_JSON, '{"models": 7}', '{"models": [7]}', '{"pid": "x"}', '{"host": []}', '{"up_seconds": "x"}'],
)
def test_facts_of_nobody_hide_no_worker(ledger: Ledger, redis_client: redis.Redis, planted: str) -> None:
    ledger.heartbeat(ME)
    redis_client.zadd(keys.WORKERS, {"planted": 10**15})
    redis_client.hset(keys.WORKER_FACTS, "planted", planted)

    assert ledger.workers() == [ME]


@pytest.mark.parametrize("planted", ["NaN", "Infinity", "1e308", "-1", "9" * 400, "true"])
def test_a_time_that_no_worker_was_up_is_unknown(
    ledger: Ledger, redis_client: redis.Redis, planted: str
) -> None:
    ledger.heartbeat(ME)
    redis_client.hset(keys.WORKER_FACTS, ME.worker_id, f'{{"worker_id": "me", "up_seconds": {planted}}}')

    (found,) = ledger.workers()

    assert (found.worker_id, found.up_seconds) == ("me", None)


@pytest.mark.parametrize("planted", ["", ":", "garbage", "a:b:c", "nobody:1", "job:finish", "planted:0"])
def test_a_lease_of_nothing_hides_no_other(ledger: Ledger, redis_client: redis.Redis, planted: str) -> None:
    add_job(ledger, sealed=False)
    claim(ledger)
    let_leases_expire(redis_client, ("job", 0))
    _plant_job(redis_client, "planted", {"state": "running"})  # without a lane
    redis_client.zadd(keys.LEASES, {planted: 0})

    assert ledger.reconcile(lease_seconds=30)[0] == 1
    assert not redis_client.exists(keys.LEASES)


def test_a_job_that_nobody_submitted_hides_no_job(ledger: Ledger, redis_client: redis.Redis) -> None:
    ledger.submit(make_job("job"))
    for name, facts in (("half", {"state": "running"}), ("[/x]", {"state": "?"})):
        redis_client.zadd(keys.JOBS, {name: 10**15})
        redis_client.hset(keys.job(name), mapping=facts)
        redis_client.expire(keys.job(name), 60)

        redis_client.zadd(keys.COUNTED, {name: 10**15})
    redis_client.zadd(keys.COUNTED, {"of another kind": 10**15})
    redis_client.rpush(keys.job("of another kind"), "x")
    redis_client.expire(keys.job("of another kind"), 60)

    assert [status.job_id for status in ledger.jobs()] == ["job"]
    assert [status.job_id for status in ledger.unfinished().jobs] == ["job"]
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
def test_a_planted_job_hides_nobody(ledger: Ledger, redis_client: redis.Redis, facts: dict[str, str]) -> None:
    _plant_job(redis_client, "planted", facts)
    add_job(ledger, sealed=False)

    assert claim(ledger).job_id == "job"


def _plant_job(client: redis.Redis, job_id: str, facts: dict[str, str]) -> None:
    client.hset(keys.job(job_id), mapping=facts)
    client.expire(keys.job(job_id), 60)
    client.zadd(keys.lane_queue("normal", MODEL), {job_id: -1})
    client.expire(keys.lane_queue("normal", MODEL), 60)


FACTS = {
    "a rate": {"max_error_rate": "x"},
    "ten thousand stages": {"measured": "1", "measured:0": _stages(10_000)},
    **{f"a count of {count}": {"measured": count} for count in ("1e300", "-1", "nan", "x")},
    **{
        f"meters {text:.9}": {"meters": text}
        for text in ("nothing", "[" * 5000, '["a"]', '{"write": 1e999}', '{"write": [1]}')
    },
}


@pytest.mark.parametrize("facts", FACTS.values(), ids=FACTS)
def test_planted_facts_stop_no_job(ledger: Ledger, redis_client: redis.Redis, facts: dict[str, str]) -> None:
    add_job(ledger, chunks=2)
    redis_client.hset(keys.job("job"), mapping=facts)

    assert [measured(ledger, claim(ledger)) for _ in range(2)] == ["done", "finishing"]
    assert ledger.status("job").ok == 20


@pytest.mark.parametrize("name", ["settled", "doing:encode", "doing:", "leased", "brief", "spec"])
@pytest.mark.parametrize("value", ["x", "7"])
def test_planted_names_of_what_status_computes_change_nothing(
    ledger: Ledger, redis_client: redis.Redis, name: str, value: str
) -> None:
    add_job(ledger)
    redis_client.hset(keys.job("job"), name, value)
    idle = ledger.status("job")
    held = claim(ledger)
    ledger.report([LeaseReport(steps.lease_of(held), 3, "encode")])
    busy = ledger.status("job")

    assert (idle.settled, idle.doing, idle.brief) == (0, {}, None)
    assert (busy.settled, busy.doing, busy.brief) == (3, {"encode": 1}, None)
    assert [listed.job_id for listed in ledger.jobs()] == ["job"]


def test_planted_measures_keep_no_chunk_open(ledger: Ledger, redis_client: redis.Redis) -> None:
    junk = ["garbage", "[", "[]", "[1.5]"]
    junk += ['{"seconds": 7}', '{"seconds": {"fetch": "x"}}', '{"meters": {"write": []}}']
    add_job(ledger, chunks=16, sealed=False)
    redis_client.hset(keys.job("job"), mapping={f"measured:{i}": text for i, text in enumerate(junk)})
    redis_client.hset(keys.job("job"), "measured", len(junk))

    assert ledger.status("job").meters == NO_METERS
    for _ in range(16):
        assert measured(ledger, claim(ledger)) == "done"

    assert ledger.status("job").meters == Meters({"write": 24.0})


# --- a job that cannot be read is quarantined ---


@pytest.mark.parametrize(
    ("plant", "what"),
    [
        (lambda client, job: client.hset(job, "ok", "x"), "field ok is 'x'"),
        (lambda client, job: client.hset(job, "ran_failed", "1e400"), "field ran_failed is '1e400'"),
        (lambda client, job: client.hset(job, "staged_chunks", "x"), "field staged_chunks is 'x'"),
        (lambda client, job: client.hset(job + keys.CODES, "not_found", "x"), "code is 'not_found'"),
        (lambda client, job: _replace(client, job + keys.STREAM), "key :stream is a string"),
        (lambda client, job: _replace(client, job + keys.OWNERS), "key :owners is a string"),
    ],
)
def test_a_job_that_cannot_be_read_fails_and_is_counted_and_its_chunk_is_free(
    ledger: Ledger, redis_client: redis.Redis, plant: Callable[[redis.Redis, str], object], what: str
) -> None:
    add_job(ledger, chunks=2)
    held = claim(ledger)
    plant(redis_client, keys.job("job"))

    assert [complete(ledger, held, ok=9, failed=1) for _ in range(2)] == ["cancelled"] * 2

    status = ledger.status("job")
    assert status.state is JobState.FAILED
    assert status.reason.startswith("what Redis holds of this job is damaged: ")
    assert what in status.reason
    assert ends(redis_client) == [("job", "0", "failed")]
    assert ledger.backlog(keep_seconds=0.001).quarantined_jobs == 1
    assert not redis_client.exists(keys.LEASES, keys.FINISHING, keys.SWEEPS, keys.lane_queue("normal", MODEL))


def _replace(client: redis.Redis, key: str) -> None:
    client.delete(key)
    client.set(key, "x", ex=60)


def test_a_planted_count_of_losses_keeps_nobodys_chunk(ledger: Ledger, redis_client: redis.Redis) -> None:
    for job_id in ("evil", "sound"):
        add_job(ledger, job_id)
        claim(ledger)
    redis_client.hset(keys.job("evil", keys.TROUBLES), "0:losses", "x")
    redis_client.expire(keys.job("evil", keys.TROUBLES), 60)
    let_leases_expire(redis_client)

    assert ledger.reconcile() == (1, 0)

    assert claim(ledger).job_id == "sound"
    assert "troubles: no count of 0:losses" in ledger.status("evil").reason


def test_a_job_that_could_never_end_fails(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger, chunks=2)
    complete(ledger, claim(ledger))
    redis_client.hset(keys.job("job"), "next_chunk", 2)

    ledger.reconcile()

    assert "done_chunks is '1' of 2, and no chunk is left" in ledger.status("job").reason


def test_what_was_counted_can_be_counted_anew(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger, chunks=2)
    held = claim(ledger)
    redis_client.hset(keys.job("job"), "done_chunks", "x")
    complete(ledger, held)
    ledger.drafts.begin("job", "draft")

    counted = draft(2, done=[0], next_chunk=1, ok=10)
    assert ledger.drafts.retry("job", "draft", counted, generation=1) == ("started", JobState.RUNNING)
    steps.work_off(ledger)

    assert (ledger.status("job").state, ledger.status("job").ok) == (JobState.FINISHING, 20)


def test_what_nobody_can_count_anew_is_not_retried(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger, chunks=2)
    held = claim(ledger)
    redis_client.hset(keys.job("job"), "staged_chunks", "x")
    redis_client.hset(keys.job("job"), "sealed", "x")
    complete(ledger, held)
    ledger.reconcile()
    ledger.drafts.begin("job", "draft")

    with pytest.raises(JobUnreadableError, match=r"cannot be retried: what Redis holds .*submit it again"):
        ledger.drafts.retry("job", "draft", draft(2), generation=1)


def test_a_job_whose_hash_is_of_another_kind_is_met_once(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger, chunks=2)
    claim(ledger)
    _replace(redis_client, keys.job("job"))
    redis_client.zadd(keys.FINISHING, {"job": 0})
    redis_client.zadd(keys.SWEEPS, {"job": 0})

    assert ledger.claim_finish("t", 600) is None

    everywhere = (keys.JOBS, keys.COUNTED, keys.LEASES, keys.FINISHING, keys.SWEEPS)
    assert redis_client.exists(*everywhere) == 0
    assert ledger.backlog(keep_seconds=0.001).quarantined_jobs == 1


def test_lost_leases_are_made_anew_from_what_the_jobs_hold(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger, chunks=3)
    held = [claim(ledger) for _ in range(2)]
    _replace(redis_client, keys.LEASES)

    ledger.reconcile()

    assert set(redis_client.zrange(keys.LEASES, 0, -1)) == {f"job:{one.chunk_id}" for one in held}
    let_leases_expire(redis_client)
    assert ledger.reconcile() == (2, 0)


def test_a_lost_queue_and_lost_turns_come_back(ledger: Ledger, redis_client: redis.Redis) -> None:
    for job_id in ("one", "two"):
        add_job(ledger, job_id, chunks=3)
    for _ in range(3):
        claim(ledger)
    for key in (keys.lane_queue("normal", MODEL), keys.TURNS, keys.JOBS):
        _replace(redis_client, key)

    assert sorted(claim(ledger).job_id for _ in range(3)) == ["one", "two", "two"]
    ledger.reconcile()
    assert {status.job_id for status in ledger.jobs()} == {"one", "two"}
    _replace(redis_client, keys.COUNTED)
    assert {status.job_id for status in ledger.unfinished().jobs} == {"one", "two"}
    ledger.reconcile()


def test_lost_announcements_return(ledger: Ledger, announcer: Announcer, redis_client: redis.Redis) -> None:
    for job_id in ("told", "untold"):
        ledger.submit(make_job(job_id).model_copy(update={"on_finished": "myapp.handle"}))
        ledger.cancel(job_id, ttl_seconds=60)
        if job_id == "told":
            announcer.run_once()
    _replace(redis_client, keys.ANNOUNCEMENTS)

    ledger.cancel("untold", ttl_seconds=60)
    ledger.reconcile()
    announcer.run_once()
    announcer.run_once()

    assert redis_client.llen("celery") == 2


def test_what_is_mended_ends_with_its_job(ledger: Ledger, redis_url: str, redis_client: redis.Redis) -> None:
    ledger.submit(make_job("job"))
    ledger.cancel("job", ttl_seconds=60)
    redis_client.delete(keys.job("job", keys.SPEC))
    redis_client.zadd(keys.SWEEPS, {"job": 0})
    with closing(Errands(redis_url)) as errands:
        errands.claim_sweep(60)

    assert redis_client.exists(keys.job("job", keys.SPEC))
    assert steps.keys_without_ttl(redis_client) == []


@pytest.mark.parametrize("text", ["x", "x" * 400, "////" * 100])
def test_a_planted_schema_of_rows_is_told_of(redis_url: str, redis_client: redis.Redis, text: str) -> None:
    redis_client.hset(keys.job("job"), "row_schema", text)
    with closing(RedisStore(redis_url)) as store, pytest.raises(JobUnreadableError, match="job 'job'"):
        store.schema("job")


# --- the battery: every situation, every key of another kind, every field and value ---

# Field, value and member; others in each situation, and `make fuzz` takes from all of them. All take some ten
# minutes: PLANTS_EVERY_NTH=1.
_EVERY_NTH = int(os.environ.get("PLANTS_EVERY_NTH", "12"))
_GROUPS = 4


@pytest.fixture
def world(redis_url: str) -> Iterator[World]:
    world = World(redis_url)
    yield world
    world.close()


def _some(plants: Mapping[str, Plant], first: int) -> Iterator[tuple[str, Plant]]:
    return islice(plants.items(), first % _EVERY_NTH, None, _EVERY_NTH)


@pytest.mark.figures
@pytest.mark.long
@pytest.mark.parametrize("group", range(_GROUPS))
def test_nothing_that_is_planted_stops_a_sound_job_or_a_worker(world: World, group: int) -> None:
    kinds, fields, members, shared = kinds_of_job(), fields_of_job(), members_of_job(), planting.shared_keys()
    failed, count, situations = [], 0, SITUATIONS[group::_GROUPS]
    for number, situation in enumerate(situations):
        case = Case(situation, world)
        first = number * _GROUPS + group
        pools = [*kinds.items(), *_some(fields, first), *_some(members, first), *_some(shared, first)]
        count += len(pools)
        for name, plant in pools:
            try:
                case.check(plant)
            except Exception as error:
                failed.append(f"{situation.name}, {name}: {error!r:.300}")
    print(f"{count:,} values planted in {len(situations)} situations, {len(failed)} stopped something")
    assert failed == []


def test_several_at_once_do_not_either(world: World) -> None:
    for number, situation in enumerate(SITUATIONS):
        case = Case(situation, world)
        for seed in range(4):
            case.check(planting.random_plant(1000 * number + seed))
