"""How long a Redis that is away is waited for, what is said meanwhile, and what is not waited for."""

from __future__ import annotations

import threading
from itertools import pairwise
from typing import Any

import pytest
import redis

from clipfleet.redis.patience import PATIENCE_SECONDS, Patience, is_unready
from tests.support.doubles import Clock

REFUSED = redis.ConnectionError("Error 111: Connection refused.")
NO_MASTER = redis.sentinel.MasterNotFoundError("No master found for 'ours'")
REFUSALS = [
    redis.AuthenticationError("WRONGPASS invalid username-password pair"),
    redis.exceptions.NoPermissionError("this user has no permissions to run the 'eval' command"),
    redis.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
]
NO_SCRIPT = redis.exceptions.NoScriptError("No matching script.")
# What a server says that is there and does not serve yet.
NOT_READY = [
    redis.TimeoutError("Timeout reading from 127.0.0.1:6379"),
    redis.BusyLoadingError("Redis is loading the dataset in memory"),
    redis.ReadOnlyError("You can't write against a read only replica."),
    redis.exceptions.MasterDownError("Link with MASTER is down"),
    redis.exceptions.TryAgainError("Multiple keys request during rehashing of slot"),
    redis.ResponseError("NOREPLICAS Not enough good replicas to write."),
    redis.ResponseError("MISCONF Errors writing to the AOF file: No space left on device"),
    redis.ResponseError("BUSY Redis is busy running a script. You can only call SCRIPT KILL"),
]


class Server:
    """Answers a command unless it is away; a try takes no time. Time passes while it is waited for."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.error: redis.RedisError = REFUSED
        self.away_until = 0.0
        self.tries: list[float] = []
        self.said: list[str] = []
        self.patience = self.patient()

    def patient(self, **options: Any) -> Patience:
        return Patience(report=self.said.append, monotonic=self.clock, wait=self.wait, **options)

    def wait(self, given_up: threading.Event, seconds: float) -> None:
        assert seconds > 0
        self.clock.now += seconds

    def go_away(self, seconds: float, error: redis.RedisError = REFUSED) -> None:
        self.away_until, self.error = self.clock.now + seconds, error

    def command(self) -> str:
        self.tries.append(self.clock.now)
        if self.clock.now < self.away_until:
            raise self.error
        return "answer"

    def call(self) -> str:
        return self.patience.call(self.command)

    def refuses_at_once(self, error: redis.RedisError) -> None:
        self.go_away(5, error)
        with pytest.raises(type(error)):
            self.call()
        assert (len(self.tries), self.said) == (1, [])


@pytest.fixture
def server() -> Server:
    return Server()


def refused() -> None:
    raise REFUSED


def test_who_answers_is_asked_once(server: Server) -> None:
    assert server.call() == "answer"
    assert (len(server.tries), server.said) == (1, [])


def test_an_outage_is_waited_for_and_told_once(server: Server) -> None:
    server.go_away(30)

    assert server.call() == "answer"

    assert server.clock.now - server.away_until <= 2
    assert server.said == [
        "Redis is away (Error 111: Connection refused.): waiting up to 60 s",
        "Redis is back",
    ]


def test_pauses_grow_to_two_seconds(server: Server) -> None:
    server.go_away(10)
    server.call()

    pauses = [after - before for before, after in pairwise(server.tries)]
    assert pauses == [0.25, 0.5, 1, 2, 2, 2, 2, 2]


def test_after_a_minute_the_last_error_comes_out_and_the_next_command_does_not_wait(server: Server) -> None:
    server.go_away(1000)
    for _ in range(2):
        with pytest.raises(redis.ConnectionError, match="refused"):
            server.call()

    *_, last, again = server.tries
    assert last - server.tries[0] == PATIENCE_SECONDS
    assert again == last
    assert len(server.said) == 1


def test_each_answer_begins_the_count_anew(server: Server) -> None:
    for _ in range(5):
        server.go_away(50)
        assert server.call() == "answer"

    assert server.said[1::2] == ["Redis is back"] * 5


@pytest.mark.parametrize("error", [*NOT_READY, redis.TimeoutError("socket"), NO_MASTER], ids=str)
def test_what_a_restart_and_a_failover_say_is_waited_for(server: Server, error: redis.RedisError) -> None:
    server.go_away(5, error)

    assert server.call() == "answer"


@pytest.mark.parametrize(
    "error",
    [*REFUSALS, NO_SCRIPT, redis.exceptions.AuthorizationError("no"), redis.ResponseError("wrong number")],
    ids=str,
)
def test_what_a_redis_refuses_is_not_waited_for(server: Server, error: redis.RedisError) -> None:
    server.refuses_at_once(error)


class TestFirstCall:
    @pytest.fixture
    def server(self, server: Server) -> Server:
        server.patience = server.patient(awaits=is_unready)
        return server

    @pytest.mark.parametrize(
        "error", [*NOT_READY, redis.exceptions.ClusterDownError("The cluster is down")], ids=str
    )
    def test_it_waits_for_a_server_that_starts(self, server: Server, error: redis.RedisError) -> None:
        server.go_away(5, error)

        assert server.call() == "answer"
        assert server.said == [f"Redis is away ({error}): waiting up to 60 s", "Redis is back"]

    @pytest.mark.parametrize(
        "error",
        [
            REFUSED,
            redis.ConnectionError("Error -2 connecting to nowhere:6379. Name or service not known."),
            redis.ConnectionError("Connection closed by server."),
            redis.TimeoutError("Timeout connecting to server"),
            NO_MASTER,
            *REFUSALS,
        ],
        ids=str,
    )
    def test_it_waits_for_no_address_that_may_be_wrong(self, server: Server, error: redis.RedisError) -> None:
        server.refuses_at_once(error)


def test_a_server_that_forgot_its_scripts_in_a_restart_is_told_to_be_back_once(server: Server) -> None:
    answers: list[Exception] = [REFUSED, NO_SCRIPT]

    def command() -> str:
        if answers:
            raise answers.pop(0)
        return "answer"

    with pytest.raises(redis.exceptions.NoScriptError):
        server.patience.call(command)
    assert server.patience.call(command) == "answer"

    assert [line.partition(" (")[0] for line in server.said] == ["Redis is away", "Redis is back"]


def test_no_patience_is_no_wait(server: Server) -> None:
    server.patience = server.patient(seconds=0)

    server.refuses_at_once(REFUSED)


def test_another_thread_may_end_the_wait() -> None:
    patience = Patience(3600, lambda _: threading.Thread(target=patience.give_up).start())

    with pytest.raises(redis.ConnectionError):
        patience.call(refused)


def test_ctrl_c_ends_the_wait() -> None:
    def interrupt(given_up: threading.Event, seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Patience(wait=interrupt).call(refused)
