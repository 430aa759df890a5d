"""Repeats commands to a Redis that is away, for what has begun and would have to be begun anew.

Only for commands that are safe to run twice. What a Redis refuses for good is not waited for: a login, a
right, a memory that is full. Before Redis has answered at all, a wrong URL looks like an outage: first calls
wait for a server that is there and does not serve yet, see `is_unready`.
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

PATIENCE_SECONDS = 60.0  # a restart with a large AOF, a failover by Sentinel: seconds, seldom more
_FIRST_PAUSE_SECONDS = 0.25
_MAX_PAUSE_SECONDS = 2.0
_AWAY = (redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError, ClusterDownError, TryAgainError)
# The disk is full, a script runs for long, a primary that has just taken over may have no replica yet
# (`min-replicas-to-write`): redis-py has no classes for these.
_PASSING = ("MISCONF", "BUSY ", "NOREPLICAS")
_LOGIN = (redis.AuthenticationError, AuthorizationError, ExternalAuthProviderError)  # connection errors, too

OnTrouble = Callable[[str], None]
T = TypeVar("T")


def log_trouble(text: str) -> None:
    """Where nobody else wants to know of an outage."""
    log.warning(text, extra={"action": "redis_away"})


def is_away(error: redis.RedisError) -> bool:
    """Whether waiting may help: no server answers, or one that cannot serve now."""
    return not isinstance(error, _LOGIN) and (isinstance(error, _AWAY) or str(error).startswith(_PASSING))


def is_unready(error: redis.RedisError) -> bool:
    """Whether a server is there and waiting may help: it loads its data, fails over, is busy or silent.

    Not where no connection was made: then the address may be wrong.
    """
    if isinstance(error, redis.TimeoutError):
        return "connecting" not in str(error)
    is_lost = isinstance(error, redis.ConnectionError) and not isinstance(error, BusyLoadingError)
    return is_away(error) and not is_lost


class Patience:
    """For one submit, retry or rebuild. `call` is for one thread, `give_up` for any.

    Args:
        seconds: how long one outage is waited for, from the first command that failed; 0: not at all.
        tell: called with a line for people when an outage begins to be waited for, and when it is over.
        awaits: whether an error is waited for.
        monotonic: a clock in seconds.
        wait: returns after that many seconds, or as soon as the event is set.
    """

    def __init__(
        self,
        seconds: float = PATIENCE_SECONDS,
        tell: OnTrouble = log_trouble,
        *,
        awaits: Callable[[redis.RedisError], bool] = is_away,
        monotonic: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Event, float], object] = threading.Event.wait,
    ) -> None:
        self._seconds = seconds
        self._tell = tell
        self._awaits = awaits
        self._monotonic = monotonic
        self._wait = wait
        self._given_up = threading.Event()
        self._since: float | None = None  # when the outage was noticed
        self._pause_seconds = _FIRST_PAUSE_SECONDS
        self._is_told = False

    def call(self, command: Callable[[], T]) -> T:
        """What a command answers; it is repeated until it does, or the time is over.

        Raises whatever redis-py raised last.
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
        """Wait no more, now and later: whoever wanted the answer has left."""
        self._given_up.set()

    def _has_waited(self, error: redis.RedisError) -> bool:
        now = self._monotonic()
        if self._since is None:
            self._since, self._pause_seconds = now, _FIRST_PAUSE_SECONDS
        left_seconds = self._since + self._seconds - now
        if left_seconds <= 0 or self._given_up.is_set():
            return False
        if not self._is_told:
            self._tell(f"Redis is away ({error}): waiting for it, {self._seconds:g} s at most")
            self._is_told = True
        self._wait(self._given_up, min(self._pause_seconds, left_seconds))
        self._pause_seconds = min(2 * self._pause_seconds, _MAX_PAUSE_SECONDS)
        return not self._given_up.is_set()

    def _has_answered(self) -> None:
        self._since = None
        if self._is_told:
            self._is_told = False
            self._tell("Redis is back")


def patient(client: redis.Redis, patience: Patience) -> redis.Redis:
    """A client with the connections of another one, whose commands are repeated; closing it does nothing."""
    return _PatientRedis(client, patience)


class _PatientRedis(redis.Redis):
    def __init__(self, client: redis.Redis, patience: Patience) -> None:
        super().__init__(connection_pool=client.connection_pool)
        self._patience = patience

    def execute_command(self, *args: Any, **options: Any) -> Any:
        command: Callable[..., Any] = super().execute_command
        return self._patience.call(lambda: command(*args, **options))
