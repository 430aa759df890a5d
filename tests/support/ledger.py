"""Short ways to put work into a ledger, and to make time pass in it.

The ledger reads the server's clock, so tests move the marks in its keys instead of sleeping.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import redis

from clipfleet.contract.jobs import Job, JobState, Lane, SourceDescription, Task
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import FINISH, Claim, Draft, FinishClaim, Lease, Ledger

MODEL = "demo"
LANES = tuple(Lane)
DAY_MS = 86_400_000
_LONG_AGO = 1  # a time in ms that is past on every clock


def new_token() -> str:
    """What a worker makes for every delivery."""
    return uuid4().hex


def make_job(
    job_id: str = "job",
    *,
    lane: Lane = Lane.NORMAL,
    model: str = MODEL,
    top_k: int = 5,
    output: str = "/out",
    max_error_rate: float | None = None,
) -> Job:
    """A job that embeds a folder."""
    return Job(
        job_id=job_id, task=Task.EMBED, model=model, lane=lane, top_k=top_k, output=output,
        max_error_rate=max_error_rate,
        source=SourceDescription(kind="folder", uri="/images"), created_at=datetime.now(UTC),
    )  # fmt: skip


def add_job(
    ledger: Ledger,
    job_id: str = "job",
    *,
    job: Job | None = None,
    chunks: int = 1,
    chunk_items: int = 10,
    sealed: bool = True,
    lane: Lane = Lane.NORMAL,
    model: str = MODEL,
    max_error_rate: float | None = None,
) -> Job:
    """Submit a job whose chunks lie in one staged file."""
    job = job or make_job(job_id, lane=lane, model=model, max_error_rate=max_error_rate)
    job_id = job.job_id
    ledger.submit(job)
    if chunks:
        assert ledger.stage(job_id, 0, chunks, chunks * chunk_items) == "staged"
    if sealed:
        assert ledger.seal(job_id, chunks, chunks * chunk_items) == "sealed"
    return job


def try_claim(
    ledger: Ledger,
    *,
    token: str = "",
    lanes: Sequence[Lane] = LANES,
    models: Sequence[str] = (MODEL,),
    excluded_jobs: Iterable[str] = (),
) -> Claim | None:
    """Claim as an idle worker does, with a lease that outlasts every test."""
    return ledger.claim(token or new_token(), 600, lanes, models, excluded_jobs)


def claim(
    ledger: Ledger,
    *,
    token: str = "",
    lanes: Sequence[Lane] = LANES,
    models: Sequence[str] = (MODEL,),
    excluded_jobs: Iterable[str] = (),
) -> Claim:
    """Like `try_claim`, where there must be work."""
    found = try_claim(ledger, token=token, lanes=lanes, models=models, excluded_jobs=excluded_jobs)
    assert found is not None, "no chunk to claim"
    return found


def complete(ledger: Ledger, claimed: Claim, *, ok: int = 10, failed: int = 0) -> str:
    """Complete a chunk whose failed rows were all `not_found`."""
    codes = {"not_found": failed} if failed else {}
    return ledger.complete(claimed, ok=ok, failed=failed, codes=codes, work_seconds={})


def work_off(ledger: Ledger, *, models: Sequence[str] = (MODEL,)) -> list[Claim]:
    """Claim and complete until nothing is left."""
    done = []
    while claimed := try_claim(ledger, models=models):
        complete(ledger, claimed)
        done.append(claimed)
    return done


def draft(
    chunks: int,
    *,
    done: Sequence[int] = (),
    next_chunk: int | None = None,
    ok: int = 0,
    codes: Mapping[str, int] = {},
    staged: Sequence[tuple[int, int]] = (),
) -> Draft:
    """What an output shows; chunks that are not done are due."""
    bits = bytearray(-(-chunks // 8))
    for chunk in done:
        bits[chunk // 8] |= 0x80 >> chunk % 8
    end = chunks if next_chunk is None else next_chunk
    due = [chunk for chunk in range(end) if chunk not in done]
    return Draft(bytes(bits), due, end, ok, sum(codes.values()), codes, staged)


def ends(client: redis.Redis) -> list[tuple[str, str, str]]:
    """`(job, generation, state)` of each event: one for each end of a job."""
    entries: Any = client.xrange(keys.EVENTS)
    return [(entry["job_id"], entry["generation"], entry["state"]) for _, entry in entries]


def claim_finish(ledger: Ledger) -> FinishClaim:
    """Claim the finishing of a job, where one must wait for it."""
    found = ledger.claim_finish(new_token(), 600)
    assert found is not None, "no job to finish"
    return found


def lose(ledger: Ledger, client: redis.Redis, claimed: Claim) -> None:
    """The worker dies, and the next reconcile notices."""
    let_leases_expire(client, (claimed.job_id, claimed.chunk_id))
    assert ledger.reconcile()[0] == 1


def add_finishing_job(ledger: Ledger, job_id: str = "job", *, failed: int = 0) -> None:
    """A job whose only chunk is complete."""
    add_job(ledger, job_id, chunks=1)
    assert complete(ledger, claim(ledger), ok=10 - failed, failed=failed) == "finishing"


def bring_into(ledger: Ledger, state: JobState, job: Job | None = None) -> None:
    """Bring a job with one chunk into a state."""
    job_id = add_job(ledger, job=job, sealed=state is not JobState.SUBMITTING).job_id
    if state is JobState.PAUSED:
        ledger.pause(job_id, "for a while")
    elif state is JobState.CANCELLED:
        ledger.cancel(job_id, ttl_seconds=60)
    elif state is JobState.FAILED:
        ledger.fail(job_id, "no disk", ttl_seconds=60)
    elif state not in (JobState.SUBMITTING, JobState.RUNNING):
        with_errors = state is JobState.COMPLETED_WITH_ERRORS
        complete(ledger, claim(ledger), ok=10 - with_errors, failed=int(with_errors))
        if state is not JobState.FINISHING:
            ledger.finish(claim_finish(ledger), ttl_seconds=60)
    assert ledger.status(job_id).state is state


def lease_of(claimed: Claim | FinishClaim) -> Lease:
    """What a worker renews of a claim."""
    chunk = str(claimed.chunk_id) if isinstance(claimed, Claim) else FINISH
    return Lease(claimed.job_id, chunk, claimed.token)


def let_time_pass(client: redis.Redis, seconds: float) -> None:
    """Every mark that the ledger has set is older by this time."""
    jobs = [str(name) for name in client.zrange(keys.JOBS, 0, -1)]
    of_jobs = [keys.job(job_id, suffix) for job_id in jobs for suffix in (keys.DUE, keys.WRITERS)]
    for key in (keys.LEASES, keys.FINISHING, keys.WORKERS, keys.SWEEPS, keys.ANNOUNCEMENTS, *of_jobs):
        for name in client.zrange(key, 0, -1):
            client.zincrby(key, -1000 * seconds, str(name))
    for job_id in jobs:
        for field in ("outage_since", "starved_since"):
            if client.hexists(keys.job(job_id), field):
                client.hincrby(keys.job(job_id), field, -int(seconds * 1000))


def let_leases_expire(client: redis.Redis, *chunks: tuple[str, int]) -> None:
    """The leases of these chunks (job id, chunk id), by default of all, are past their deadline."""
    names = [f"{job_id}:{chunk}" for job_id, chunk in chunks] or client.zrange(keys.LEASES, 0, -1)
    _make_past(client, keys.LEASES, names)


def let_finish_claims_expire(client: redis.Redis) -> None:
    """Whoever finishes a job now is past the deadline; postponed finishings are due."""
    _make_past(client, keys.FINISHING, client.zrange(keys.FINISHING, 0, -1))


def let_back_offs_pass(client: redis.Redis, job_id: str) -> None:
    """Every chunk of a job that was given back is due."""
    due = keys.job(job_id, keys.DUE)
    _make_past(client, due, client.zrange(due, 0, -1))


def let_outage_grow_old(client: redis.Redis, job_id: str) -> None:
    """An outage of a job, if there is one, has lasted for years."""
    if client.hexists(keys.job(job_id), "outage_since"):
        client.hset(keys.job(job_id), "outage_since", _LONG_AGO)


def let_errands_be_due(client: redis.Redis) -> None:
    """Whatever is left to do for ended jobs may begin; who began it is past its lease."""
    for key in (keys.SWEEPS, keys.ANNOUNCEMENTS):
        _make_past(client, key, client.zrange(key, 0, -1))


def _make_past(client: redis.Redis, key: str, members: Iterable[object]) -> None:
    marks = {str(member): _LONG_AGO for member in members}
    if marks:
        client.zadd(key, marks, xx=True)


def server_now_ms(client: redis.Redis) -> int:
    """The server's clock, as the scripts read it."""
    seconds, microseconds = client.time()
    return int(seconds) * 1000 + int(microseconds) // 1000


def keys_without_ttl(client: redis.Redis) -> list[str]:
    """Keys of ours that would stay for ever."""
    names = sorted(str(name) for name in client.scan_iter(f"{keys.PREFIX}:*", count=1000))
    with client.pipeline(transaction=False) as pipeline:
        for name in names:
            pipeline.pttl(name)
        ttls = pipeline.execute()
    return [name for name, ttl in zip(names, ttls, strict=True) if ttl == -1]
