"""Connections to Redis: timeouts, retries, clear errors.

Without a socket timeout a half-open connection hangs for ever. Commands are retried after a lost connection,
so every command that is sent through such a client must be idempotent.
"""

from __future__ import annotations

import re
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

# What redis-py says of a connection that was not made.
_UNCONNECTED = re.compile(r"(?:Error -?\d+ connecting to .*?\. (.+?)|Timeout connecting to server)\.?")


def connect(
    url: str,
    *,
    decode: bool = True,
    retries: int = 3,
    patience_seconds: float = 10,
    origin: str = "CLIPFLEET_REDIS_URL",
) -> redis.Redis:
    """Make a client for the ledger's Redis, without connecting.

    Args:
        url: as in CLIPFLEET_REDIS_URL.
        decode: whether answers are text, not bytes.
        retries: number of retries of a command whose connection was lost.
        patience_seconds: timeout of one answer; must be longer than a blocking read.
        origin: of the URL, for messages.

    Raises:
        UsageError: the URL cannot be used.
    """
    # No health checks: each has retries of its own, which multiply those of a command to a silent server.
    options: dict[str, Any] = {
        "decode_responses": decode,
        "encoding_errors": "surrogateescape",  # bytes of another program must not make a call fail
        "socket_timeout": patience_seconds,
        "socket_connect_timeout": min(3, patience_seconds),
        "socket_keepalive": True,
        "retry": Retry(ExponentialBackoff(cap=1, base=0.05), retries),
        # Each retry makes a new connection: by then the name may resolve to the new primary.
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
        pool.connection_class(
            **pool.connection_kwargs
        )  # unknown options raise here, not with the first command
    except (ValueError, TypeError, AttributeError, RedisError) as error:
        message = str(error).rpartition("__init__() ")[2].partition("\n")[0]
        raise UsageError(f"{origin} cannot be used: {message}") from None
    return client


def _primary(address: SentinelUrl, options: dict[str, Any]) -> redis.Redis:
    """Make a client that asks the Sentinels for the primary with each connection."""
    once = {"retry": Retry(NoBackoff(), 0)}  # the next Sentinel is tried instead
    untyped: Any = Sentinel  # its types differ between versions of redis-py
    sentinels = untyped(address.sentinels, sentinel_kwargs={**sentinel_options(address), **once})
    client: redis.Redis = sentinels.master_for(
        address.master_name, db=address.database, **options, **address.login, **address.tls
    )
    return client


def masked(url: str) -> str:
    """The URL without secrets: no user, no password, no query."""
    scheme, separator, rest = url.partition("://")
    host = rest.rpartition("@")[2].partition("?")[0]
    return f"{scheme}{separator}{'***@' if '@' in rest else ''}{host}"


@contextmanager
def damage_of(job_id: str) -> Iterator[None]:
    """Turn the errors that a planted key or value of a job causes into `JobUnreadableError`."""
    try:
        yield
    except RedisUnavailableError as error:
        cause = str(error.__cause__)
        if not cause.startswith(("WRONGTYPE", "DAMAGED")):
            raise
        raise JobUnreadableError(f"job {job_id!r}: what Redis holds of it is damaged: {cause}") from None
    except (LookupError, ValueError, TypeError, OverflowError):
        raise JobUnreadableError(f"job {job_id!r}: what Redis holds of it is not of clipfleet") from None


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]


@contextmanager
def redis_errors(url: str) -> Iterator[None]:
    """Turn redis-py's exceptions into `RedisUnavailableError`, which names the server and the way out."""
    try:
        yield
    except redis.AuthenticationError as error:
        raise RedisUnavailableError(
            f"Redis at {masked(url)}: login refused; check user and password in CLIPFLEET_REDIS_URL"
        ) from error
    except redis.OutOfMemoryError as error:
        raise RedisUnavailableError(
            f"Redis at {masked(url)}: its memory is full: raise maxmemory, or wait until ended jobs expire"
        ) from error
    except redis.ReadOnlyError as error:
        raise RedisUnavailableError(
            f"Redis at {masked(url)} is a replica: CLIPFLEET_REDIS_URL must lead to the primary"
        ) from error
    except redis.ResponseError as error:  # of a running server: -BUSY, -NOREPLICAS, -MISCONF, -NOPERM
        is_right = isinstance(error, NoPermissionError) or str(error).startswith("ACL failure")
        hint = "; what a user needs is in ops/redis/users.acl" if is_right else ""
        raise RedisUnavailableError(f"Redis at {masked(url)} refuses: {error}{hint}") from error
    except MasterNotFoundError as error:  # its own text shows internals of redis-py
        raise RedisUnavailableError(
            f"Redis at {masked(url)}: no Sentinel there knows a running primary of that name; "
            "do they run, and are their names, the primary's name and sentinel_password right?"
        ) from error
    except RedisError as error:
        where = f"Redis at {masked(url)}: {str(error).rstrip('.')}"
        if unconnected := _UNCONNECTED.fullmatch(str(error)):
            where = f"cannot connect to Redis at {masked(url)}: {_lowered(unconnected[1] or 'timeout')}"
        hint = "is it running, and is CLIPFLEET_REDIS_URL right?"
        raise RedisUnavailableError(f"{where}; {hint}") from error
    except OSError as error:
        # Raised before redis-py translates errors: for example no file descriptors are left.
        raise RedisUnavailableError(f"Redis at {masked(url)}: cannot connect: {error}") from error
