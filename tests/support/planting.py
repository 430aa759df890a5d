"""Situations in which a script meets a job, and what may have been planted in the keys of that job by then.

A situation is made once and kept as `DUMP` gives it, so that a thousand plants cost a thousand restores.
Afterwards the same must hold for each of them: what serves everybody has raised nothing, a sound job beside
the planted one comes to its end, and the planted one is not left half way.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import redis

from clipfleet.contract.jobs import JobState
from clipfleet.errors import ClipfleetError, RedisUnavailableError
from clipfleet.ledger import keys
from clipfleet.ledger.errands import Errands
from clipfleet.ledger.jobs import Claim, Draft, FinishClaim, Lease, LeaseReport, Ledger, Quota, WorkerFacts
from clipfleet.ledger.row_store import RedisStore
from clipfleet.outputs.redis import RedisOutput
from clipfleet.redis.connection import connect
from clipfleet_worker.sinks.redis import RedisSink
from tests.support import ledger as steps
from tests.support import redis_rows
from tests.support.ledger import MODEL, add_job, claim, make_job, try_claim

EVIL, SOUND = "evil", "sound"
CHUNKS = 2
_ROWS = 4  # of a chunk of a job whose rows live in Redis
_DRAFT = Draft(done=b"\x80", due=[1], next_chunk=2, ok=10, failed=0, codes={})
_WORKER = WorkerFacts("w", "here", 1, (MODEL,))
_MOST_CLAIMS = 30

Plant = Callable[[Any], object]  # takes a pipeline, or a client


class World:
    """A ledger and all that speaks to it, on a server of its own."""

    def __init__(self, url: str) -> None:
        self.client: redis.Redis = connect(url)
        self._raw: redis.Redis = connect(url, decode=False)
        self.ledger = Ledger(url)
        self.bounded = Ledger(url, quota=Quota(items=10_000, bytes=1 << 30))
        self.store = RedisStore(url)
        self.sink = RedisSink(self.store)
        self.errands = Errands(url)
        self.held: dict[str, Claim] = {}  # claims that a situation has made, by job
        self.finish: FinishClaim | None = None

    def close(self) -> None:
        """Close all connections."""
        for one in (self.ledger, self.bounded, self.store, self.errands, self.client, self._raw):
            one.close()

    @property
    def the_finish(self) -> FinishClaim:
        """The finishing that a situation has claimed."""
        assert self.finish is not None
        return self.finish

    def snapshot(self) -> list[tuple[bytes, int, bytes]]:
        """All keys as they are now."""
        names: list[Any] = self._raw.keys("*")
        with self._raw.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.dump(name).pttl(name)
            found = pipeline.execute()
        return [(name, max(0, found[2 * i + 1]), found[2 * i]) for i, name in enumerate(names)]

    def restore(self, snapshot: list[tuple[bytes, int, bytes]], plant: Plant) -> None:
        """Exactly these keys, with what is planted."""
        with self._raw.pipeline(transaction=False) as pipeline:
            pipeline.flushdb()
            for name, ttl_ms, dump in snapshot:
                pipeline.restore(name, ttl_ms, dump)
            plant(pipeline)
            pipeline.execute(raise_on_error=False)  # some plants fit nothing that is there


@dataclass(frozen=True)
class Situation:
    """A call, and the state in which it meets the planted job."""

    name: str
    prepare: Callable[[World], object]
    act: Callable[[World], object]
    serves_all: bool = False  # else it is for the planted job alone, and may say that this cannot be read
    ends: bool = True  # the planted job was submitted whole: it comes to an end, or has failed


class Case:
    """A situation that was made, ready for any number of plants."""

    def __init__(self, situation: Situation, world: World) -> None:
        world.client.flushall()
        world.held, world.finish = {}, None
        situation.prepare(world)
        self.situation = situation
        self.world = world
        self._held, self._finish = world.held, world.finish
        self._snapshot = world.snapshot()

    def check(self, plant: Plant) -> None:
        """Raises what must not be."""
        world = self.world
        world.held, world.finish = self._held, self._finish
        world.restore(self._snapshot, plant)
        with nullcontext() if self.situation.serves_all else told_of_a_job():
            self.situation.act(world)
        work_off(world)
        status = world.ledger.status(SOUND)
        assert (status.state, status.ok) == (JobState.COMPLETED, CHUNKS * 10), status
        if self.situation.ends:
            with told_of_a_job():
                evil = world.ledger.status(EVIL)
                is_served = evil.model == MODEL  # else no worker of these would do it, planted or not
                is_under_way = evil.state is JobState.RUNNING and evil.sealed and is_served
                assert not is_under_way and evil.state is not JobState.FINISHING, f"half way: {evil}"


@contextmanager
def told_of_a_job() -> Iterator[None]:
    """What is said of one job may be an error of clipfleet; never that Redis refuses something."""
    try:
        yield
    except RedisUnavailableError as error:
        raise AssertionError(f"raw: {error}") from error
    except ClipfleetError:
        pass


def _may_tell_of(job_id: str) -> AbstractContextManager[None]:
    return told_of_a_job() if job_id == EVIL else nullcontext()


def work_off(world: World) -> None:
    """What workers do, until nothing is left: two of them, of which the first one dies."""
    ledger, client = world.ledger, world.client
    for job_id, held in world.held.items():
        with _may_tell_of(job_id):
            _complete(world, held)
    for _ in range(2):
        for let_pass in (
            partial(steps.let_back_offs_pass, client, EVIL),
            partial(steps.let_back_offs_pass, client, SOUND),
            partial(steps.let_leases_expire, client),
            partial(steps.let_finish_claims_expire, client),
        ):
            with suppress(redis.ResponseError):  # what is planted may be of another kind
                let_pass()
        ledger.reconcile()
        claims = 0
        while claimed := try_claim(ledger) or ledger.claim_finish(steps.new_token(), 600):
            claims += 1
            assert claims < _MOST_CLAIMS, f"claimed again and again: {claimed}"
            with _may_tell_of(claimed.job_id):
                if isinstance(claimed, Claim):
                    _complete(world, claimed)
                else:
                    ledger.finish(claimed, ttl_seconds=60)
    ledger.backlog(keep_seconds=0.001)


def _complete(world: World, claimed: Claim) -> None:
    if claimed.job_id == EVIL and claimed.chunk_size == _ROWS:
        rows = redis_rows.chunk_rows(claimed.chunk_id * _ROWS, _ROWS)
        for _ in range(2):  # what was brought may be gone
            found = redis_rows.bring(world.sink, claimed, rows)
            if redis_rows.complete(world.ledger, claimed, found) != "incomplete":
                return
    else:
        world.ledger.complete(claimed, ok=10, failed=0, codes={}, work_seconds={"write": 0.5})


def _complete_some(world: World, claimed: Claim) -> None:
    codes, spent = {"not_found": 3}, {"write": 0.5}
    world.ledger.complete(claimed, ok=7, failed=3, codes=codes, work_seconds=spent)


# --- what situations begin with ---


def _both(world: World, **options: Any) -> None:
    add_job(world.ledger, EVIL, chunks=CHUNKS, **options)
    add_job(world.ledger, SOUND, chunks=CHUNKS)


def _claimed(world: World) -> None:
    _both(world)
    for _ in range(2):
        claimed = claim(world.ledger)
        world.held[claimed.job_id] = claimed
    assert set(world.held) == {EVIL, SOUND}


def _with_history(world: World) -> None:
    _both(world)
    world.ledger.release(claim(world.ledger), "failures", reason="")
    steps.let_back_offs_pass(world.client, EVIL)


def _last_one(world: World) -> None:
    add_job(world.ledger, EVIL, chunks=CHUNKS)
    _complete_some(world, claim(world.ledger))
    world.held[EVIL] = claim(world.ledger)
    add_job(world.ledger, SOUND, chunks=CHUNKS)


def _rows(world: World) -> None:
    redis_rows.submit_job(world.ledger, EVIL, chunks=1, chunk_items=_ROWS)
    world.held[EVIL] = claim(world.ledger, token="t0k3n")
    redis_rows.bring(world.sink, world.held[EVIL], redis_rows.chunk_rows(0, _ROWS))
    add_job(world.ledger, SOUND, chunks=CHUNKS)


def _expired(world: World) -> None:
    _claimed(world)
    world.held.clear()
    steps.let_leases_expire(world.client)
    world.client.set(keys.RECONCILED, steps.server_now_ms(world.client))


def _finishing(world: World) -> None:
    add_job(world.ledger, EVIL, chunks=CHUNKS)
    steps.work_off(world.ledger)
    add_job(world.ledger, SOUND, chunks=CHUNKS)


def _finish_claimed(world: World) -> None:
    _finishing(world)
    world.finish = steps.claim_finish(world.ledger)


def _cancelled(world: World) -> None:
    job = make_job(EVIL).model_copy(update={"on_finished": "myapp.handle"})
    add_job(world.ledger, job=job, chunks=CHUNKS)
    claim(world.ledger)
    world.ledger.cancel(EVIL, ttl_seconds=60)
    add_job(world.ledger, SOUND, chunks=CHUNKS)


def _noted(world: World) -> None:
    _cancelled(world)
    world.ledger.drafts.begin(EVIL, "draft")
    assert world.ledger.drafts.note(EVIL, "draft", _DRAFT)


def _paused(world: World) -> None:
    _both(world)
    world.ledger.pause(EVIL, "")


def _open(world: World) -> None:
    _both(world, sealed=False)


def _open_rows(world: World) -> None:
    redis_rows.submit_job(world.ledger, EVIL, chunks=1, chunk_items=_ROWS, sealed=False)
    assert RedisOutput(world.store, EVIL).create("items", b"bytes")
    add_job(world.ledger, SOUND, chunks=CHUNKS)


# --- the calls ---


def _renew(world: World) -> None:
    leases = [steps.lease_of(one) for one in world.held.values()]
    assert world.ledger.renew(leases, 600)[-1] == "held"


def _report(world: World) -> None:
    """A chunk after another, as a worker does that holds both, and that has lost a third."""
    reports = [LeaseReport(steps.lease_of(one), 3, "encode") for one in world.held.values()]
    world.ledger.report(reports, [Lease(EVIL, "1", "lost")])
    assert world.ledger.status(SOUND).settled == 3


def _renew_finish(world: World) -> None:
    world.ledger.renew([steps.lease_of(world.the_finish)], 600)


def _postpone(world: World, *, is_lasting: bool) -> None:
    world.ledger.postpone_finish(world.the_finish, 0, "away", outage_seconds=-1, is_lasting=is_lasting)


def _rebuild(world: World) -> None:
    world.ledger.drafts.rebuild(
        make_job(EVIL), "draft", _DRAFT, state=JobState.RUNNING, generation=1, items=20, ttl_seconds=60
    )


def _do_errands(world: World) -> None:
    for _ in range(2):
        for errand in (world.errands.claim_sweep(0), world.errands.claim_announcement(0)):
            if errand:
                world.errands.drop(errand)


def _look(world: World) -> None:
    for look in (
        world.ledger.status, world.ledger.job, world.ledger.staged_files, world.ledger.last_progress,
        world.store.chunks, world.store.schema, world.store.dimension,
        lambda job_id: RedisOutput(world.store, job_id).names(""),
    ):  # fmt: skip
        with told_of_a_job():
            look(EVIL)


def _serve_all(world: World) -> None:
    """What is asked of all jobs together, or of others."""
    ledger = world.ledger
    ledger.heartbeat(_WORKER)
    assert _WORKER in ledger.workers()
    assert SOUND in [status.job_id for status in ledger.jobs()]
    ledger.backlog(keep_seconds=0.001)
    world.bounded.submit(make_job("another"))
    world.bounded.stage("another", 0, 1, 10)
    ledger.cancel("another", ttl_seconds=60)
    ledger.farewell("w")
    world.errands.claim_sweep(600)
    world.errands.claim_announcement(600)


def _release(kind: str) -> Callable[[World], object]:
    return lambda w: w.ledger.release(w.held[EVIL], kind, reason="away")


SITUATIONS: tuple[Situation, ...] = (
    Situation("claim", _both, lambda w: [try_claim(w.ledger) for _ in range(2)], True),
    Situation("claim what had trouble", _with_history, lambda w: try_claim(w.ledger), True),
    Situation("claim once more", _claimed, lambda w: try_claim(w.ledger, token=w.held[EVIL].token), True),
    Situation("complete", _claimed, lambda w: _complete(w, w.held[EVIL])),
    Situation("complete with failures", _claimed, lambda w: _complete_some(w, w.held[EVIL])),
    Situation("complete the last one", _last_one, lambda w: _complete_some(w, w.held[EVIL])),
    Situation("complete rows", _rows, lambda w: _complete(w, w.held[EVIL])),
    Situation("renew", _claimed, _renew, True),
    Situation("report", _claimed, _report, True),
    *(Situation(f"release: {kind}", _claimed, _release(kind)) for kind in ("failures", "waits", "drain")),
    Situation("reconcile", _expired, lambda w: w.ledger.reconcile(), True),
    Situation("claim_finish", _finishing, lambda w: w.ledger.claim_finish("t", 0), True),
    Situation(
        "renew a finishing",
        _finish_claimed,
        lambda w: w.ledger.renew([steps.lease_of(w.the_finish)], 600),
        True,
    ),
    Situation("finish", _finish_claimed, lambda w: w.ledger.finish(w.the_finish, ttl_seconds=60)),
    Situation("postpone_finish", _finish_claimed, partial(_postpone, is_lasting=False), ends=False),
    Situation("postpone_finish for good", _finish_claimed, partial(_postpone, is_lasting=True)),
    Situation("do errands", _cancelled, _do_errands, True),
    Situation("cancel", _claimed, lambda w: w.ledger.cancel(EVIL, ttl_seconds=60)),
    Situation("writers", _cancelled, lambda w: w.ledger.writers(EVIL, 30)),
    Situation("pause", _both, lambda w: w.ledger.pause(EVIL, ""), ends=False),
    Situation("resume", _paused, lambda w: w.ledger.resume(EVIL)),
    Situation("stage", _open, lambda w: w.ledger.stage(EVIL, CHUNKS, 1, 10), ends=False),
    Situation("seal", _open, lambda w: w.ledger.seal(EVIL, CHUNKS, CHUNKS * 10), ends=False),
    Situation("put_object", _open_rows, lambda w: RedisOutput(w.store, EVIL).replace("items", b"x")),
    Situation("draft", _noted, lambda w: w.ledger.drafts.note(EVIL, "draft", _DRAFT), ends=False),
    Situation(
        "retry", _noted, lambda w: w.ledger.drafts.retry(EVIL, "draft", _DRAFT, generation=1), ends=False
    ),
    Situation("rebuild", _noted, _rebuild, ends=False),
    Situation("submit again", _both, lambda w: w.ledger.submit(make_job(EVIL)), ends=False),
    Situation("look", _claimed, _look),
    Situation("serve all", _both, _serve_all, True),
)

# --- what is planted ---

PENDING = tuple(f":pending:t0k3n{suffix}" for suffix in keys.PENDING_SUFFIXES)
ALL_SUFFIXES = (*keys.JOB_SUFFIXES, *keys.RESULT_SUFFIXES, *PENDING)
FIELDS = (
    "fingerprint", "state", "lane", "model", "generation", "staged_chunks", "staged_items", "next_chunk",
    "sealed", "done_chunks", "ok", "failed", "turn", "outage_since", "created_ms", "finished_ms",
    "finish_token", "sweeps_left", "reason", "retry_codes", "draft_token", "seconds:write",
    "max_error_rate", "carried", "ran", "ran_failed", "meters", "measured", "measured:0", "starved_since",
    "starved_ms", "has_troubles", "job_ttl_ms", "result_ttl_ms", "row_schema", "chunk_size", "last_file",
    "untold", "traceparent", "settled", "doing:encode", "brief",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    "x", "", "nan", "inf", "1e400", "-1", "1.5", "0x10", " 1", "9" * 30, "99999999999999", "x" * 50_000,
    b"\xff\xfe", "[]", "running",
)  # fmt: skip
_MEMBERS = ("x", "", "-1", "1.5", "9" * 30, b"\xff", "0-0", "7-7")
_SCORES = (0, "-inf", "inf", 1e300, -5)
_LAST_ID = "18446744073709551615-18446744073709551615"
_KINDS: dict[str, Callable[[Any, str], object]] = {
    "string": lambda pipe, key: pipe.set(key, "x"),
    "list": lambda pipe, key: pipe.rpush(key, "x"),
    "hash": lambda pipe, key: pipe.hset(key, "x", "x"),
    "set": lambda pipe, key: pipe.sadd(key, "x"),
    "zset": lambda pipe, key: pipe.zadd(key, {"x": 0}),
    "stream": lambda pipe, key: pipe.xadd(key, {"x": "x"}),
}


def _of_kind(key: str, kind: str) -> Plant:
    def plant(pipe: Any) -> None:
        pipe.unlink(key)
        _KINDS[kind](pipe, key)
        pipe.expire(key, 600)

    return plant


def _hset(key: str, name: Any, value: Any) -> Plant:
    return lambda pipe: pipe.hset(key, name, value)


def _zadd(key: str, member: Any, score: Any) -> Plant:
    return lambda pipe: pipe.execute_command("ZADD", key, score, member)


def _full_stream(key: str) -> Plant:
    return lambda pipe: pipe.xadd(key, {"x": "x"}, id=_LAST_ID)


def kinds_of_job() -> dict[str, Plant]:
    """Every key of the job in every kind, its own included: with content that is none of ours."""
    return {
        f"{suffix or 'hash'} is a {kind}": _of_kind(keys.job(EVIL, suffix), kind)
        for suffix in ALL_SUFFIXES
        for kind in _KINDS
    }


def fields_of_job() -> dict[str, Plant]:
    """Every field of the job's hash with every value, and without it."""
    key = keys.job(EVIL)
    found: dict[str, Plant] = {
        f"{name} = {value!r:.20}": _hset(key, name, value) for name in FIELDS for value in VALUES
    }
    return found | {f"no {name}": lambda pipe, name=name: pipe.hdel(key, name) for name in FIELDS}


def members_of_job() -> dict[str, Plant]:
    """Odd members, scores and values in keys of the right kind."""
    found: dict[str, Plant] = {"stream is full": _full_stream(keys.job(EVIL, keys.STREAM))}
    for suffix in (keys.DUE, keys.STAGED):
        for member in (*_MEMBERS, "0", "1", "0-2"):
            for score in _SCORES:
                found[f"{suffix} {member!r} {score}"] = _zadd(keys.job(EVIL, suffix), member, score)
    for value in VALUES:
        found[f"spec = {value!r:.20}"] = lambda pipe, value=value: pipe.set(keys.job(EVIL, keys.SPEC), value)
    found["no spec"] = lambda pipe: pipe.delete(keys.job(EVIL, keys.SPEC))
    for member in _MEMBERS:
        found[f"owner of {member!r}"] = _hset(keys.job(EVIL, keys.OWNERS), member, "x")
    for value in VALUES:
        for suffix, name in (
            (keys.TROUBLES, "0:losses"), (keys.TROUBLES, "0:failures"), (keys.TROUBLES, "0:waits"),
            (keys.CODES, "not_found"), (keys.CODES, "x"), (keys.OWNERS, "0"), (keys.IDS, "id-0"),
            (keys.CHUNKS, "0"), (PENDING[0], "0"), (PENDING[0], value), (PENDING[1], "0"),
            (PENDING[2], "id-0"),
        ):  # fmt: skip
            found[f"{suffix} {name!r:.9} = {value!r:.20}"] = _hset(keys.job(EVIL, suffix), name, value)
    return found


SHARED = (
    keys.JOBS, keys.LEASES, keys.FINISHING, keys.EVENTS, keys.SWEEPS, keys.ANNOUNCEMENTS, keys.RECONCILED,
    keys.BACKLOG, keys.TURNS, keys.WORKERS, keys.WORKER_FACTS, keys.COUNTED, keys.WALKED, keys.QUARANTINED,
    keys.lane_queue("normal", MODEL), keys.lane_queue("high", MODEL), keys.claim_token("t"),
    keys.claim_token("finish:t"),
)  # fmt: skip


def shared_keys() -> dict[str, Plant]:
    """Every key that all jobs share in every kind, with odd members, scores and values."""
    found: dict[str, Plant] = {f"{key} is a {kind}": _of_kind(key, kind) for key in SHARED for kind in _KINDS}
    found["events are full"] = _full_stream(keys.EVENTS)
    for key in SHARED:
        for value in VALUES:
            found[f"{key} = {value!r:.20}"] = lambda pipe, key=key, value=value: pipe.set(key, value, ex=600)
        for member in (*_MEMBERS, EVIL, SOUND, f"{EVIL}:0", f"{SOUND}:0", f"{SOUND}:7", f"{EVIL}:x"):
            for score in _SCORES:
                found[f"{key} {member!r} {score}"] = _zadd(key, member, score)
    return found


def random_plant(seed: int) -> Plant:
    """A handful of the above at once, always the same for a seed."""
    chance = random.Random(seed)
    pools = [list(pool().values()) for pool in (kinds_of_job, fields_of_job, members_of_job, shared_keys)]
    plants = [chance.choice(chance.choice(pools)) for _ in range(chance.randint(1, 5))]

    def plant(pipe: Any) -> None:
        for one in plants:
            one(pipe)

    return plant
