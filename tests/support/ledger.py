"""Short ways to put work into a ledger, and to make time pass in it.

The ledger reads the server's clock, so tests move the marks in its keys instead of sleeping.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from uuid import uuid4

import redis

from clipfleet.contract.jobs import Job, Lane, SourceDescription, Task
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import Claim, FinishClaim, Ledger

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


def claim_finish(ledger: Ledger) -> FinishClaim:
    """Claim the finishing of a job, where one must wait for it."""
    found = ledger.claim_finish(new_token(), 600)
    assert found is not None, "no job to finish"
    return found


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
