"""How many images and texts each key has asked for today, counted in Redis for all gateways together."""

from __future__ import annotations

import secrets
from typing import Self

from clipfleet.ledger.scripts import LuaScripts
from clipfleet.redis.connection import connect
from clipfleet.settings import DAY_SECONDS
from clipfleet.wording import counted
from clipfleet_gateway.errors import limited
from clipfleet_gateway.keys.key import Key

QUOTA_SCRIPTS = ("spend",)
_ACT_SECONDS = 30 * DAY_SECONDS  # a named act is counted once in so long
_CALL_SECONDS = 120  # redis-py repeats a call after a lost connection


class Quotas:
    """Counts of this Redis. Thread-safe. Raises `RedisUnavailableError` while Redis is unavailable."""

    def __init__(self, url: str) -> None:
        self._redis = connect(url)
        self._run = LuaScripts(self._redis, url, QUOTA_SCRIPTS).run

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._redis.close()

    def spend(self, key: Key, count: int, *, once: str | None = None) -> None:
        """Count images and texts; a key without a quota has any number.

        Args:
            key: that asks for them.
            count: of images and texts.
            once: names an act that is counted once, even if it is repeated, such as the id of a batch. With
                a higher count than before, only the difference is counted.

        Raises:
            ApiError: they would exceed the quota of the day; then none is counted (429).
        """
        if key.quota is None:
            return
        act = f"once:{once}" if once is not None else f"call:{secrets.token_hex(16)}"
        ttl_seconds = _ACT_SECONDS if once is not None else _CALL_SECONDS
        left_ms = self._run("spend", key.name, act, count, key.quota, ttl_seconds * 1000)
        if left_ms:
            what = f"{counted(count, 'item')} more would exceed it"
            raise limited(
                f"This key may have {key.quota:,} items a day (UTC): {what}", left_ms / 1000, "quota_exceeded"
            )
