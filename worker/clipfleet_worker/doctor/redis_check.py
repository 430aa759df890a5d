"""Checks that the ledger's Redis answers, keeps its data and grants a worker's rights; and the broker."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from statistics import median
from typing import Any

import redis
from kombu.exceptions import KombuError
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from clipfleet.errors import RedisUnavailableError, UsageError
from clipfleet.hints import make_app
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import Ledger
from clipfleet.redis.connection import connect, masked, redis_errors
from clipfleet.wording import counted
from clipfleet_worker.doctor import Finding, fine, problem, warning
from clipfleet_worker.doctor.redis_rights import missing_commands
from clipfleet_worker.settings import WorkerSettings

_OLDEST_REDIS = (6, 2)
_PATIENCE_SECONDS = 5.0
_PINGS = 10
_SLOW_PING_SECONDS = 0.02  # a chunk takes a few calls
_CLOCK_SECONDS = 5.0
_FULL = 0.9
_BY_ADMINISTRATOR = (
    "check as an administrator: `INFO persistence` must say aof_enabled:1, `INFO memory` "
    "maxmemory_policy:noeviction"
)


def redis_findings(settings: WorkerSettings) -> Iterator[Finding]:
    """Check the ledger's Redis."""
    try:
        url = settings.require_redis_url()
        client = connect(url, retries=0, patience_seconds=_PATIENCE_SECONDS)
    except UsageError as error:
        yield problem("the ledger cannot be reached", str(error))
        return
    try:
        with client, redis_errors(url):
            yield from _of_server(client, url)
    except RedisUnavailableError as error:
        what, _, way_out = str(error).partition("; ")
        yield problem(what, way_out or "see CLIPFLEET_REDIS_URL, and the log of Redis")
    except RedisError as error:
        yield problem(f"Redis at {masked(url)}: {error}", "see the log of Redis")


def _of_server(client: redis.Redis, url: str) -> Iterator[Finding]:
    seconds = median(_timed_ping(client) for _ in range(_PINGS))
    facts = _hello(client)
    server, version = str(facts.get("server", "redis")), str(facts.get("version", "?"))
    where = f"{server} {version} at {masked(url)}"
    yield fine(f"{where} answers in {seconds * 1000:.1f} ms")
    if seconds > _SLOW_PING_SECONDS:
        yield warning(f"each call takes {seconds * 1000:.0f} ms", "move Redis closer to the workers")
    if server == "redis" and _numbers(version) < _OLDEST_REDIS:
        yield problem(f"{where} is too old", "use Redis 6.2 or newer, or Valkey")
    if facts.get("mode") == "cluster":
        yield problem(f"{where} is a Redis Cluster", "use a single primary, or Sentinel")
    if facts.get("role") in ("slave", "replica"):
        yield problem(f"{where} is a replica", "set CLIPFLEET_REDIS_URL to the primary")
        return
    yield from _of_clock(client)
    yield from _of_memory_and_disk(client)
    yield from _of_rights(client)
    yield from _of_writing(client)
    yield from _of_workers(url)


def _of_workers(url: str) -> Iterator[Finding]:
    ledger = Ledger(url)
    try:
        workers = ledger.workers()
    finally:
        ledger.close()
    models = sorted({model for facts in workers for model in facts.models})
    if workers:
        yield fine(f"connected: {counted(len(workers), 'worker')}, for {', '.join(models)}")
    else:
        yield fine("no worker is connected yet")


def broker_findings(settings: WorkerSettings) -> Iterator[Finding]:
    """Check the broker of hints, if it is another server than the ledger."""
    try:
        url = settings.require_broker_url()
    except UsageError as error:
        yield problem("the broker cannot be reached", str(error))
        return
    if settings.broker_url is None:
        yield fine("hints go through the ledger's Redis")
        return
    where = masked(url)
    try:
        with make_app(url).connection_for_write(connect_timeout=_PATIENCE_SECONDS) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0.1, timeout=_PATIENCE_SECONDS)
    except UsageError as error:
        yield problem("the broker cannot be reached", str(error).replace("REDIS_URL", "BROKER_URL"))
    except (KombuError, RedisError, OSError) as error:
        said = " ".join(str(error).split()).partition(" : <")[0]  # the rest is of redis-py's objects
        yield problem(
            f"cannot connect to the broker at {where}: {said}",
            "check that it runs, and CLIPFLEET_BROKER_URL",
        )
    else:
        yield fine(f"the broker at {where} accepts connections")


def _timed_ping(client: redis.Redis) -> float:
    began = time.perf_counter()
    client.ping()
    return time.perf_counter() - began


def _hello(client: redis.Redis) -> dict[str, Any]:
    """Facts that every user may read; empty if a proxy does not know HELLO."""
    try:
        answer: Any = client.execute_command("HELLO")  # type: ignore[no-untyped-call]  # redis-py has no types for it
    except ResponseError:
        return {}
    return dict(answer if isinstance(answer, dict) else zip(answer[::2], answer[1::2], strict=False))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _of_clock(client: redis.Redis) -> Iterator[Finding]:
    seconds, microseconds = client.time()
    ahead = time.time() - (int(seconds) + int(microseconds) / 1e6)
    if abs(ahead) > _CLOCK_SECONDS:
        side = "ahead of" if ahead > 0 else "behind"
        yield warning(
            f"this machine's clock is {abs(ahead):.0f} s {side} that of Redis",
            "run NTP on both; leases depend on the clock of Redis alone, signatures for S3 on this one",
        )


def _of_memory_and_disk(client: redis.Redis) -> Iterator[Finding]:
    try:
        info: dict[str, Any] = client.info("persistence") | client.info("memory")
    except NoPermissionError:
        yield warning("this user may not check whether Redis keeps its data (INFO)", _BY_ADMINISTRATOR)
        return
    if not info.get("aof_enabled"):
        yield problem(
            "AOF is off: a restart of Redis loses jobs",
            "redis-cli CONFIG SET appendonly yes, and `appendonly yes` in its configuration",
        )
    elif info.get("aof_last_write_status", "ok") != "ok":
        yield problem("the last write of the AOF failed", "see the log of Redis: is its disk full?")
    policy, limit = str(info.get("maxmemory_policy", "")), int(info.get("maxmemory", 0))
    if policy != "noeviction":
        say = problem if limit else warning
        yield say(
            f"maxmemory-policy is {policy}: Redis evicts jobs when it is full",
            "redis-cli CONFIG SET maxmemory-policy noeviction, and the same in its configuration",
        )
    used = int(info.get("used_memory", 0))
    if limit and used > _FULL * limit:
        yield warning(
            f"{used >> 20} of {limit >> 20} MiB of Redis are in use",
            "raise maxmemory, or lower CLIPFLEET_JOB_TTL_SECONDS and CLIPFLEET_RESULT_TTL_SECONDS",
        )


def _of_rights(client: redis.Redis) -> Iterator[Finding]:
    missing = missing_commands(client)
    if missing:
        yield problem(
            f"this user may not run {', '.join(missing)}",
            "grant it the rights of clipfleet-worker in ops/redis/users.acl",
        )


def _of_writing(client: redis.Redis) -> Iterator[Finding]:
    """Write a key: a server that is full, cannot save or lacks replicas rejects writes only."""
    key = f"{keys.PREFIX}:doctor:{uuid.uuid4().hex}"
    try:
        client.set(key, "", px=1000)
        client.delete(key)
    except NoPermissionError:  # reported with the other rights
        return
    except ResponseError as error:
        yield problem(f"Redis rejects writes: {error}", _way_out_of(error))


def _way_out_of(error: ResponseError) -> str:
    if isinstance(error, redis.OutOfMemoryError):
        return "raise maxmemory, or wait until ended jobs expire"
    if str(error).startswith("NOREPLICAS"):
        return "start its replicas, or lower min-replicas-to-write"
    return "see the log of Redis: is its disk full?"
