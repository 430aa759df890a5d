"""Locks in a real Redis: one holder, given back or ended by its time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from clipfleet.ledger import keys
from clipfleet.ledger.locks import TTL_SECONDS, LockLostError, Locks, LockTakenError
from tests.support.waiting import wait_until

NAME = "store:a"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def locks(redis_url: str, clock: Clock) -> Locks:
    return Locks(redis_url, monotonic=clock)


@pytest.fixture
def client(redis_client: redis.Redis) -> Iterator[Any]:
    yield redis_client


def test_another_program_does_not_get_it_until_it_is_given_back(locks: Locks, redis_url: str) -> None:
    other = Locks(redis_url)
    with locks.held(NAME), other.held("store:b"), pytest.raises(LockTakenError), other.held(NAME):
        pass

    with other.held(NAME):
        pass


def test_a_shorter_time(redis_url: str, clock: Clock, client: Any) -> None:
    locks = Locks(redis_url, ttl_seconds=6, monotonic=clock)
    with locks.held(NAME) as alive:
        assert 0 < client.pttl(keys.lock(NAME)) <= 6_000
        client.pexpire(keys.lock(NAME), 1_000)
        clock.now = 1.1
        alive()
        assert client.pttl(keys.lock(NAME)) > 1_000


def test_it_is_given_back_after_an_error_too(locks: Locks, client: Any) -> None:
    with pytest.raises(KeyError), locks.held(NAME):
        raise KeyError

    assert not client.exists(keys.lock(NAME))


def test_it_ends_by_itself_unless_its_holder_is_alive(locks: Locks, clock: Clock, client: Any) -> None:
    with locks.held(NAME) as alive:
        assert 0 < client.pttl(keys.lock(NAME)) <= TTL_SECONDS * 1000
        client.pexpire(keys.lock(NAME), 5_000)
        alive()
        assert client.pttl(keys.lock(NAME)) <= 5_000, "renewed more often than needed"
        clock.now += 11
        alive()
        assert client.pttl(keys.lock(NAME)) > 5_000


def test_who_has_lost_it_is_told_and_takes_nothing_away(locks: Locks, clock: Clock, redis_url: str) -> None:
    other = Locks(redis_url)
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    with pytest.raises(LockLostError, match=NAME), locks.held(NAME) as alive:
        client.delete(keys.lock(NAME))
        with other.held(NAME):
            clock.now += 11
            try:
                alive()
            finally:
                assert client.exists(keys.lock(NAME))


@pytest.mark.parametrize("has_had_another_holder", [False, True])
def test_one_that_has_ended_is_lost_even_if_nobody_has_it(
    locks: Locks, clock: Clock, redis_url: str, client: Any, has_had_another_holder: bool
) -> None:
    with pytest.raises(LockLostError, match=NAME), locks.held(NAME) as alive:
        client.delete(keys.lock(NAME))
        if has_had_another_holder:
            with Locks(redis_url).held(NAME):
                pass
        clock.now += 11
        alive()

    assert not client.exists(keys.lock(NAME))


def test_one_that_has_ended_may_be_taken_again_unless_another_has_it(
    redis_url: str, clock: Clock, client: Any
) -> None:
    """As after a step that took longer than the lock: the next try would lose it there again."""
    locks = Locks(redis_url, retakes=True, monotonic=clock)
    with locks.held(NAME) as alive:
        client.delete(keys.lock(NAME))
        clock.now += 11
        alive()
        assert client.exists(keys.lock(NAME))

    with pytest.raises(LockLostError, match=NAME), locks.held(NAME) as alive:
        client.delete(keys.lock(NAME))
        with Locks(redis_url).held(NAME):
            clock.now += 11
            alive()


def test_who_waits_gets_it_in_the_end(redis_url: str) -> None:
    held = []

    def work(number: int) -> None:
        tries = iter(range(10_000))
        with Locks(redis_url).held(NAME, wait=lambda: next(tries)):
            held.append(number)
            assert len(held) == 1
            held.clear()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(20)))


def test_who_waits_may_give_up(locks: Locks, redis_url: str) -> None:
    def give_up() -> None:
        raise TimeoutError

    with locks.held(NAME), pytest.raises(TimeoutError), Locks(redis_url).held(NAME, wait=give_up):
        pass


def test_a_holder_that_died_keeps_nobody_out(locks: Locks, redis_url: str, client: Any) -> None:
    client.set(keys.lock(NAME), "dead", px=50)

    wait_until(lambda: not client.exists(keys.lock(NAME)), "the lock has ended")

    with locks.held(NAME):
        pass
