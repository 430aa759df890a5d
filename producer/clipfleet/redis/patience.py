"""Retries of commands during an outage of Redis, for work that would otherwise have to start over.

For idempotent commands only. A permanent refusal is not retried: of a login, for a missing right, or because
the memory is full. Before the first answer a wrong URL looks like an outage: first calls wait only for a
server that is up and not ready, see `is_unready`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import redis
from redis.exceptions import (
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    ExternalAuthProviderError,
    TryAgainError,
)

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 60.0  # a restart with a large AOF or a failover by Sentinel takes seconds
_FIRST_PAUSE_SECONDS = 0.25
_MAX_PAUSE_SECONDS = 2.0
_AWAY = (redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError, ClusterDownError, TryAgainError)
# redis-py has no classes for these: a full disk, a long script, a new primary without a replica
# (`min-replicas-to-write`).
_PASSING = ("MISCONF", "BUSY ", "NOREPLICAS")
_LOGIN = (redis.AuthenticationError, AuthorizationError, ExternalAuthProviderError)  # connection errors, too

OnTrouble = Callable[[str], None]
T = TypeVar("T")


def log_trouble(text: str) -> None:
    """Log the begin and the end of an outage: the default of `Patience`."""
    log.warning(text, extra={"action": "redis_away"})


def is_away(error: redis.RedisError) -> bool:
    """Whether waiting may help: no server answers, or it cannot serve now."""
    return not isinstance(error, _LOGIN) and (isinstance(error, _AWAY) or str(error).startswith(_PASSING))


def is_unready(error: redis.RedisError) -> bool:
    """Whether a server is up and waiting may help: it loads its data, fails over, is busy or silent.

    False if no connection was made: the address may be wrong.
    """
    if isinstance(error, redis.TimeoutError):
        return "connecting" not in str(error)
    is_lost = isinstance(error, redis.ConnectionError) and not isinstance(error, BusyLoadingError)
    return is_away(error) and not is_lost


class Patience:
    """Waits of one submit, retry or rebuild. `call` is for one thread, `give_up` for any.

    Args:
        seconds: upper bound for one outage, from the first command that failed; 0: never wait.
        report: called with a line for the user when a wait begins, and when the outage is over.
        awaits: whether to wait after an error.
        monotonic: a clock in seconds.
        wait: returns after that many seconds, or as soon as the event is set.
    """

    def __init__(
        self,
        seconds: float = PATIENCE_SECONDS,
        report: OnTrouble = log_trouble,
        *,
        awaits: Callable[[redis.RedisError], bool] = is_away,
        monotonic: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Event, float], object] = threading.Event.wait,
    ) -> None:
        self._seconds = seconds
        self._report = report
        self._awaits = awaits
        self._monotonic = monotonic
        self._wait = wait
        self._given_up = threading.Event()
        self._since: float | None = None  # when the outage began
        self._pause_seconds = _FIRST_PAUSE_SECONDS
        self._is_reported = False

    def call(self, command: Callable[[], T]) -> T:
        """Run a command, and retry it until it answers or the time is over.

        Raises the last error of redis-py.
        """
        while True:
            try:
                answer = command()
            except redis.RedisError as error:
                if not self._awaits(error) or not self._has_waited(error):
                    raise
            else:
                self._has_answered()
                return answer

    def give_up(self) -> None:
        """Stop waiting, now and for all later calls."""
        self._given_up.set()

    def _has_waited(self, error: redis.RedisError) -> bool:
        now = self._monotonic()
        if self._since is None:
            self._since, self._pause_seconds = now, _FIRST_PAUSE_SECONDS
        left_seconds = self._since + self._seconds - now
        if left_seconds <= 0 or self._given_up.is_set():
            return False
        if not self._is_reported:
            self._report(f"Redis is away ({error}): waiting up to {self._seconds:g} s")
            self._is_reported = True
        self._wait(self._given_up, min(self._pause_seconds, left_seconds))
        self._pause_seconds = min(2 * self._pause_seconds, _MAX_PAUSE_SECONDS)
        return not self._given_up.is_set()

    def _has_answered(self) -> None:
        self._since = None
        if self._is_reported:
            self._is_reported = False
            self._report("Redis is back")


def patient(client: redis.Redis, patience: Patience) -> redis.Redis:
    """Make a client on the connections of another one that retries commands; closing it does nothing."""
    return _PatientRedis(client, patience)


class _PatientRedis(redis.Redis):
    def __init__(self, client: redis.Redis, patience: Patience) -> None:
        super().__init__(connection_pool=client.connection_pool)
        self._patience = patience

    def execute_command(self, *args: Any, **options: Any) -> Any:
        command: Callable[..., Any] = super().execute_command
        return self._patience.call(lambda: command(*args, **options))
