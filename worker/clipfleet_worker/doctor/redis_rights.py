"""Finds the commands of a worker that a user of Redis may not run, without running any.

Redis checks rights when a command is queued in a transaction. So each is queued, and none is executed.
"""

from __future__ import annotations

from typing import Any

import redis
from redis.exceptions import NoPermissionError, ResponseError

from clipfleet.ledger import keys

_OURS = f"{keys.PREFIX}:doctor"
_SECRETS = keys.webhook_secrets("doctor")
_BINDING = f"_kombu.binding.{keys.QUEUE}"

# `tests/unit/worker/doctor/test_doctor.py` compares them with `clipfleet-worker` in ops/redis/users.acl.
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("TIME",),
    ("EVAL", "return 1", "1", _OURS),
    ("EVALSHA", "0" * 40, "1", _OURS),
    ("SCRIPT LOAD", "return 1"),
    ("SCRIPT EXISTS", "0" * 40),
    ("EXISTS", _OURS),
    ("GET", _OURS),
    ("GETEX", _OURS),
    ("SET", _OURS, ""),
    ("TYPE", _OURS),
    ("COPY", _OURS, _OURS),
    ("DEL", _OURS),
    ("UNLINK", _OURS),
    ("COPY", _OURS, _OURS),
    ("EXPIRE", _OURS, "1"),
    ("PEXPIRE", _OURS, "1"),
    ("PTTL", _OURS),
    ("HEXISTS", _OURS, "x"),
    ("HGET", _OURS, "x"),
    ("HSET", _OURS, "x", "1"),
    ("HSETNX", _OURS, "x", "1"),
    ("HDEL", _OURS, "x"),
    ("HGETALL", _OURS),
    ("HINCRBY", _OURS, "x", "1"),
    ("HINCRBYFLOAT", _OURS, "x", "1"),
    ("HKEYS", _OURS),
    ("HLEN", _OURS),
    ("HMGET", _OURS, "x"),
    ("HRANDFIELD", _OURS),
    ("SETBIT", _OURS, "0", "1"),
    ("GETBIT", _OURS, "0"),
    ("ZADD", _OURS, "0", "x"),
    ("ZCARD", _OURS),
    ("ZCOUNT", _OURS, "0", "0"),
    ("ZMSCORE", _OURS, "x"),
    ("ZRANGE", _OURS, "0", "0"),
    ("ZRANGEBYSCORE", _OURS, "0", "0"),
    ("ZREVRANGEBYSCORE", _OURS, "0", "0"),
    ("ZREM", _OURS, "x"),
    ("ZSCORE", _OURS, "x"),
    ("XADD", _OURS, "*", "x", "1"),
    ("LRANGE", _OURS, "0", "0"),
    ("HMGET", _SECRETS, "x"),
    ("PEXPIRE", _SECRETS, "1"),
    ("BRPOP", keys.QUEUE, "1"),
    ("RPOP", keys.QUEUE),
    ("LPUSH", keys.QUEUE, "x"),
    ("RPUSH", keys.QUEUE, "x"),
    ("LLEN", keys.QUEUE),
    ("SADD", _BINDING, "x"),
    ("SREM", _BINDING, "x"),
    ("SMEMBERS", _BINDING),
    ("ZADD", "unacked_index", "0", "x"),
    ("HSET", "unacked", "x", "1"),
    ("SET", "unacked_mutex", "x"),
)


def missing_commands(client: redis.Redis) -> list[str]:
    """Commands, with their keys, that the user of this client may not run."""
    connection: Any = client.connection_pool.get_connection()
    missing: list[str] = []
    try:
        connection.send_command("MULTI")
        connection.read_response()
        for name, *arguments in COMMANDS:
            connection.send_command(*name.split(), *arguments)
            try:
                connection.read_response()
            except NoPermissionError:
                missing.append(name if _OURS in arguments or not arguments else f"{name} {arguments[0]}")
            except ResponseError:  # unknown to this server; its version is reported
                continue
    finally:
        connection.disconnect()  # executes nothing
        client.connection_pool.release(connection)
    return missing
