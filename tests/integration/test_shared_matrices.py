"""Text matrices in Redis: one worker encodes, the others take over; nothing depends on Redis."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import redis

from clipfleet import keys
from clipfleet_worker import shared_matrices
from clipfleet_worker.failures import ChunkInterrupted
from clipfleet_worker.shared_matrices import SharedMatrices
from tests.support.doubles import PATIENCE_SECONDS, InThread
from tests.support.ledger import keys_without_ttl

MATRIX = np.arange(12, dtype=np.float32).reshape(4, 3)
NAME = keys.text_matrix("model", "labels")


def packed(matrix: np.ndarray) -> bytes:
    return struct.pack("<II", *matrix.shape) + matrix.astype("<f4").tobytes()


# Whole, but of other labels or of another model; and numbers that are none.
PLANTED = [
    packed(np.ones((0, 3))),
    packed(np.ones((5, 3))),
    packed(np.ones((4, 2))),
    packed(np.full((4, 3), np.nan)),
]


@pytest.fixture
def shared(redis_url: str, redis_client: redis.Redis) -> Iterator[SharedMatrices]:
    shared = SharedMatrices(redis_url)
    yield shared
    assert keys_without_ttl(redis_client) == []
    shared.close()


def still_alive() -> None: ...


def never(_: Callable[[], None]) -> np.ndarray:
    raise AssertionError("it must not be encoded")


def at_once(alive: Callable[[], None]) -> np.ndarray:
    alive()
    return MATRIX


def get(shared: SharedMatrices, encode: Callable[[Callable[[], None]], np.ndarray]) -> np.ndarray:
    return shared.get("model", "labels", MATRIX.shape, encode, still_alive)


def test_the_second_worker_takes_over_what_the_first_has_encoded(
    shared: SharedMatrices, redis_url: str, redis_client: redis.Redis
) -> None:
    np.testing.assert_array_equal(get(shared, at_once), MATRIX)

    other = SharedMatrices(redis_url)
    taken = get(other, never)
    other.close()

    np.testing.assert_array_equal(taken, MATRIX)
    assert taken.dtype == np.float32
    assert not redis_client.exists(f"{NAME}:lock")


def test_who_comes_meanwhile_waits_and_may_leave(shared: SharedMatrices, redis_url: str) -> None:
    entered, go, waited = threading.Event(), threading.Event(), threading.Event()

    def slowly(alive: Callable[[], None]) -> np.ndarray:
        alive()
        entered.set()
        assert go.wait(PATIENCE_SECONDS)
        return MATRIX

    first = InThread(lambda: get(shared, slowly))
    assert entered.wait(PATIENCE_SECONDS)

    def lost() -> None:
        raise ChunkInterrupted("lost")

    with pytest.raises(ChunkInterrupted):
        SharedMatrices(redis_url).get("model", "labels", MATRIX.shape, never, lost)
    second = InThread(
        lambda: SharedMatrices(redis_url).get("model", "labels", MATRIX.shape, never, waited.set)
    )
    assert waited.wait(PATIENCE_SECONDS)
    go.set()

    np.testing.assert_array_equal(first.result(), MATRIX)
    np.testing.assert_array_equal(second.result(), MATRIX)


def test_a_worker_that_died_while_it_encoded_is_replaced(
    shared: SharedMatrices, redis_client: redis.Redis
) -> None:
    redis_client.set(f"{NAME}:lock", "somebody who is gone", px=300)

    np.testing.assert_array_equal(get(shared, at_once), MATRIX)


def test_the_lock_is_renewed_before_each_slice(shared: SharedMatrices, redis_client: redis.Redis) -> None:
    def encode(alive: Callable[[], None]) -> np.ndarray:
        redis_client.pexpire(f"{NAME}:lock", 5_000)
        alive()
        assert redis_client.pttl(f"{NAME}:lock") > 30_000
        return MATRIX

    get(shared, encode)


def test_a_lock_that_was_lost_meanwhile_costs_nothing(
    shared: SharedMatrices, redis_client: redis.Redis
) -> None:
    def encode(alive: Callable[[], None]) -> np.ndarray:
        redis_client.set(f"{NAME}:lock", "another worker", px=60_000)
        alive()
        return MATRIX

    np.testing.assert_array_equal(get(shared, encode), MATRIX)
    assert redis_client.get(f"{NAME}:lock") == "another worker"


def test_a_failure_frees_the_lock_and_is_not_shared(
    shared: SharedMatrices, redis_client: redis.Redis
) -> None:
    def fails(_: Callable[[], None]) -> np.ndarray:
        raise MemoryError("device")

    with pytest.raises(MemoryError):
        get(shared, fails)

    assert redis_client.keys(f"{NAME}*") == []


@pytest.mark.parametrize("data", [b"", b"xy", b"\1\0\0\0\1\0\0\0", b"\xff" * 40, *PLANTED])
def test_what_is_no_matrix_is_encoded_anew(
    shared: SharedMatrices, redis_client: redis.Redis, data: bytes
) -> None:
    redis_client.set(NAME, data, ex=60)

    np.testing.assert_array_equal(get(shared, at_once), MATRIX)
    np.testing.assert_array_equal(get(shared, never), MATRIX)


def test_a_very_large_one_is_not_shared(
    shared: SharedMatrices, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_matrices, "_MAX_BYTES", MATRIX.nbytes - 1)

    get(shared, at_once)

    assert not redis_client.exists(NAME)


def test_without_redis_everyone_encodes() -> None:
    client = redis.Redis(port=1, socket_connect_timeout=1)
    shared = SharedMatrices("redis://127.0.0.1:1/0", client=client)

    np.testing.assert_array_equal(get(shared, at_once), MATRIX)
    shared.close()
