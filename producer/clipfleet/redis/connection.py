"""How this project connects to Redis: bounded waits, repeated commands, clear errors.

Without a socket time-out a half-open connection hangs for ever. Commands are repeated after a lost
connection, so whatever is sent through such a client must be safe to run twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import NoPermissionError, RedisError
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from clipfleet.errors import JobUnreadableError, RedisUnavailableError, UsageError
from clipfleet.redis.url import SENTINEL_SCHEMES, SentinelUrl, parse_sentinel, sentinel_options


def connect(url: str, *, decode: bool = True, retries: int = 3, patience_seconds: float = 10) -> redis.Redis:
    """A client for the ledger's Redis; nothing is sent yet.

    Args:
        url: as in CLIPFLEET_REDIS_URL.
        decode: answers are text, not bytes.
        retries: of a command whose connection was lost.
        patience_seconds: for one answer; must be longer than a blocking read.

    Raises:
        UsageError: the URL cannot be used.
    """
    # No health checks: each has retries of its own, which multiply those of a command to a silent server.
    options: dict[str, Any] = {
        "decode_responses": decode,
        "encoding_errors": "surrogateescape",  # a stranger's bytes must not end the call that comes upon them
        "socket_timeout": patience_seconds,
        "socket_connect_timeout": min(3, patience_seconds),
        "socket_keepalive": True,
        "retry": Retry(ExponentialBackoff(cap=1, base=0.05), retries),
        # Each try is a new connection: the name may lead to the new primary by then.
        "retry_on_error": [redis.ReadOnlyError],
    }
    try:
        parts = urlsplit(url)
        if parts.scheme in SENTINEL_SCHEMES:
            return _primary(parse_sentinel(url), options)
        (parts.hostname or "").encode("idna")  # else the first command fails, with a UnicodeError
        if parts.scheme == "unix":
            del options["socket_keepalive"]  # of TCP
        client = redis.Redis.from_url(url, **options)
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # what it does not know is told here, and not later
    except (ValueError, TypeError, AttributeError, RedisError) as error:
        message = str(error).rpartition("__init__() ")[2].partition("\n")[0]
        raise UsageError(f"CLIPFLEET_REDIS_URL cannot be used: {message}") from None
    return client


def _primary(address: SentinelUrl, options: dict[str, Any]) -> redis.Redis:
    """A client that asks the Sentinels for the primary whenever it connects."""
    once = {"retry": Retry(NoBackoff(), 0)}  # the next Sentinel is asked instead
    sentinels = Sentinel(  # type: ignore[no-untyped-call]  # redis-py has no types for it
        address.sentinels, sentinel_kwargs={**sentinel_options(address), **once}
    )
    client: redis.Redis = sentinels.master_for(  # type: ignore[no-untyped-call]  # likewise
        address.master_name, db=address.database, **options, **address.login, **address.tls
    )
    return client


def masked(url: str) -> str:
    """The URL without anything that may be a secret: no user, no password, no query."""
    scheme, separator, rest = url.partition("://")
    host = rest.rpartition("@")[2].partition("?")[0]
    return f"{scheme}{separator}{'***@' if '@' in rest else ''}{host}"


@contextmanager
def damage_of(job_id: str) -> Iterator[None]:
    """Turn what a planted key or value of a job causes into `JobUnreadableError`."""
    try:
        yield
    except RedisUnavailableError as error:
        cause = str(error.__cause__)
        if not cause.startswith(("WRONGTYPE", "DAMAGED")):
            raise
        raise JobUnreadableError(f"job {job_id!r}: what Redis holds of it is damaged: {cause}") from None
    except (LookupError, ValueError, TypeError, OverflowError):
        raise JobUnreadableError(f"job {job_id!r}: what Redis holds of it is not of clipfleet") from None


@contextmanager
def redis_errors(url: str) -> Iterator[None]:
    """Turn redis-py's exceptions into `RedisUnavailableError`, which names the server and the way out."""
    try:
        yield
    except redis.AuthenticationError as error:
        raise RedisUnavailableError(
            f"Redis at {masked(url)}: login refused (check user and password in CLIPFLEET_REDIS_URL)"
        ) from error
    except redis.OutOfMemoryError as error:
        raise RedisUnavailableError(
            f"Redis at {masked(url)}: its memory is full: raise maxmemory, or wait until ended jobs expire"
        ) from error
    except redis.ReadOnlyError as error:
        raise RedisUnavailableError(
            f"Redis at {masked(url)} is a replica: CLIPFLEET_REDIS_URL must lead to the primary"
        ) from error
    except redis.ResponseError as error:  # it runs: -BUSY, -NOREPLICAS, -MISCONF, -NOPERM
        is_right = isinstance(error, NoPermissionError) or str(error).startswith("ACL failure")
        hint = " (what a user needs is in ops/redis/users.acl)" if is_right else ""
        raise RedisUnavailableError(f"Redis at {masked(url)} refuses: {error}{hint}") from error
    except MasterNotFoundError as error:  # its own text shows the inside of redis-py
        raise RedisUnavailableError(
            f"Redis at {masked(url)}: no Sentinel there knows a primary of that name that is up "
            "(do they run, and are their names, the primary's name and sentinel_password right?)"
        ) from error
    except RedisError as error:
        hint = "is it running, and is CLIPFLEET_REDIS_URL right?"
        raise RedisUnavailableError(f"Redis at {masked(url)}: {error} ({hint})") from error
    except OSError as error:
        # Before redis-py has a connection whose errors it would translate: no descriptors.
        raise RedisUnavailableError(f"Redis at {masked(url)}: cannot connect: {error}") from error
