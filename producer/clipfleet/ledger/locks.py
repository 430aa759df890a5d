"""Locks in Redis, for work that only one program should do at a time.

A lock ends with its holder, or after `TTL_SECONDS`, or another time, without a sign of life; then it is lost,
whether another program has taken it or not (but see `retakes`). A program that was frozen may continue after
that, until its next sign of life: locks avoid wasted work, and correctness must not depend on them.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import redis

from clipfleet.errors import RedisUnavailableError
from clipfleet.ledger.scripts import LuaScripts
from clipfleet.redis.connection import connect
from clipfleet.redis.patience import Patience, patient

LOCK_SCRIPTS = ("lock",)
TTL_SECONDS = 60.0
_RENEWED_IN_A_TTL = 6  # times

Alive = Callable[[], None]


class LockTakenError(Exception):
    """Another program holds the lock."""


class LockLostError(Exception):
    """The lock was lost: Redis was away, or this program stood still for too long."""


class Locks:
    """Locks by name. Thread-safe. Raises `RedisUnavailableError` while Redis is unavailable."""

    def __init__(
        self,
        url: str,
        *,
        ttl_seconds: float = TTL_SECONDS,
        retakes: bool = False,
        client: redis.Redis | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`retakes`: a holder whose lock has ended takes it again if no other program has it by then.

        For work that starts anew with each lock: a step that is longer than a lock would never be passed.
        """
        self._url = url
        self._retakes = retakes
        self._ttl_seconds = ttl_seconds
        self._redis = client or connect(url)
        self._run = LuaScripts(self._redis, url, LOCK_SCRIPTS).run
        self._monotonic = monotonic

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def with_patience(self, patience: Patience) -> Locks:
        """The same locks on the same connections, whose calls wait while Redis is unavailable."""
        client = patient(self._redis, patience)
        return Locks(
            self._url, ttl_seconds=self._ttl_seconds, retakes=self._retakes, client=client,
            monotonic=self._monotonic,
        )  # fmt: skip

    @contextmanager
    def held(self, name: str, *, wait: Callable[[], object] | None = None) -> Iterator[Alive]:
        """Hold a lock, and give it back.

        Args:
            name: of the lock.
            wait: called before each further try while another program holds it; it sleeps, and may raise to
                give up. None: there is one try.

        Yields:
            A call for the holder to make now and then: it renews the lock, at most every sixth of its time.
            It raises `LockLostError`.

        Raises:
            LockTakenError: another program holds it, and `wait` is None.
        """
        token = secrets.token_hex(8)
        while not self._take(name, token):
            if wait is None:
                raise LockTakenError(name)
            wait()
        renewed = self._monotonic()

        def alive() -> None:
            nonlocal renewed
            if self._monotonic() - renewed < self._ttl_seconds / _RENEWED_IN_A_TTL:
                return
            if not self._take(name, token, is_renewed=not self._retakes):
                raise LockLostError(f"the lock {name} has ended, and another program may have taken it")
            renewed = self._monotonic()

        try:
            yield alive
        finally:
            with suppress(RedisUnavailableError):  # it ends by itself
                self._run("lock", name, token, 0)

    def _take(self, name: str, token: str, *, is_renewed: bool = False) -> bool:
        return bool(self._run("lock", name, token, int(self._ttl_seconds * 1000), int(is_renewed)))
