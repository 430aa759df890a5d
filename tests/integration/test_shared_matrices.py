"""Text matrices in Redis: one worker encodes, the others take over; nothing depends on Redis."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import numpy as np
import pytest
from redis import Redis

from clipfleet.contract.jobs import Lane
from clipfleet.contract.label_sets import LabelSet
from clipfleet.ledger import keys
from clipfleet_worker.encode.batcher import Batcher
from clipfleet_worker.encode.batches import Encoder
from clipfleet_worker.encode.fake_encoder import FakeEncoder
from clipfleet_worker.failures import ChunkInterrupted
from clipfleet_worker.score import text_matrices
from clipfleet_worker.score.text_matrices import TextMatrices
from tests.support.doubles import PATIENCE_SECONDS, InThread
from tests.support.failing import failing
from tests.support.ledger import keys_without_ttl

LABELS = LabelSet(labels=("cat", "dog", "car", "house"))
NAME = keys.text_matrix(FakeEncoder().fingerprint, LABELS.hash)
LOCK = f"{NAME}:lock"
LABEL_COUNT, DIMENSION = 4, FakeEncoder().embedding_dimension


@pytest.fixture(autouse=True)
def _all_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_matrices, "_SHARED_FROM_PROMPTS", 1)


def packed(matrix: np.ndarray) -> bytes:
    return struct.pack("<II", *matrix.shape) + matrix.astype("<f4").tobytes()


# Whole, but of other labels or of another model; and numbers that are none.
PLANTED = [
    packed(np.ones((0, DIMENSION))),
    packed(np.ones((LABEL_COUNT + 1, DIMENSION))),
    packed(np.ones((DIMENSION, LABEL_COUNT))),
    packed(np.full((LABEL_COUNT, DIMENSION), np.nan)),
]


def still_alive() -> None: ...


class Worker:
    """Text matrices of one worker, which does something while it encodes."""

    def __init__(self, url: str, encodes: Callable[[], None] = still_alive) -> None:
        self.encodings = 0
        self._encodes = encodes
        self.matrices = TextMatrices(cast(Batcher, self), url)

    def encode_texts(self, encoder: Encoder, prompts: Sequence[str], _: Lane) -> np.ndarray:
        self.encodings += 1
        self._encodes()
        return encoder.encode_texts(list(prompts))

    def get(self, alive: Callable[[], None] = still_alive) -> np.ndarray:
        values = self.matrices.get(FakeEncoder(), LABELS, Lane.NORMAL, alive).values
        return cast(np.ndarray, values.numpy())


Make = Callable[..., Worker]
EXPECTED = FakeEncoder().encode_texts([f"a photo of a {label}" for label in LABELS.labels])


@pytest.fixture
def worker(redis_url: str, redis_client: Redis) -> Iterator[Make]:
    """Makes workers."""
    made: list[Worker] = []

    def make(encodes: Callable[[], None] = still_alive) -> Worker:
        made.append(Worker(redis_url, encodes))
        return made[-1]

    yield make
    assert keys_without_ttl(redis_client) == []
    for worker in made:
        worker.matrices.close()


def check(worker: Worker, *, encodings: int) -> None:
    """The matrix is right, after so many slices were encoded here."""
    np.testing.assert_allclose(worker.get(), EXPECTED, rtol=1e-6)
    assert worker.encodings == encodings


def test_the_second_worker_takes_over_what_the_first_has_encoded(worker: Make, redis_client: Redis) -> None:
    check(worker(), encodings=1)

    check(worker(), encodings=0)

    assert not redis_client.exists(LOCK)
    assert 0 < redis_client.ttl(NAME) <= 86_400


def test_who_comes_meanwhile_waits_and_may_leave(worker: Make) -> None:
    entered, go, waited = threading.Event(), threading.Event(), threading.Event()

    def slowly() -> None:
        entered.set()
        assert go.wait(PATIENCE_SECONDS)

    first = InThread(worker(slowly).get)
    assert entered.wait(PATIENCE_SECONDS)

    with pytest.raises(ChunkInterrupted):
        worker().get(failing(ChunkInterrupted("lost")))
    other = worker()
    second = InThread(lambda: other.get(waited.set))
    assert waited.wait(PATIENCE_SECONDS)
    go.set()

    np.testing.assert_array_equal(first.result(), second.result())
    assert other.encodings == 0


def test_a_worker_that_died_while_it_encoded_is_replaced(worker: Make, redis_client: Redis) -> None:
    redis_client.set(LOCK, "somebody who is gone", px=300)

    check(worker(), encodings=1)


def test_the_lock_is_renewed_before_each_slice(
    worker: Make, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_matrices, "_PROMPTS_PER_PASS", 1)
    left: list[int] = []

    def encodes() -> None:
        left.append(redis_client.pttl(LOCK))
        redis_client.pexpire(LOCK, 5_000)

    check(worker(encodes), encodings=4)

    assert min(left) > 30_000


def test_a_lock_that_was_lost_meanwhile_costs_nothing(worker: Make, redis_client: Redis) -> None:
    check(worker(lambda: redis_client.set(LOCK, "another worker", px=60_000)), encodings=1)

    assert redis_client.get(LOCK) == "another worker"


def test_a_failure_frees_the_lock_and_is_not_shared(worker: Make, redis_client: Redis) -> None:
    with pytest.raises(MemoryError):
        worker(failing(MemoryError("device"))).get()

    assert redis_client.keys(f"{NAME}*") == []


@pytest.mark.parametrize("data", [b"", b"xy", b"\1\0\0\0\1\0\0\0", b"\xff" * 40, *PLANTED])
def test_what_is_no_matrix_is_encoded_anew(worker: Make, redis_client: Redis, data: bytes) -> None:
    redis_client.set(NAME, data, ex=60)

    check(worker(), encodings=1)
    check(worker(), encodings=0)


@pytest.mark.parametrize(
    ("limit", "value"),
    [("_SHARED_BYTES", EXPECTED.nbytes - 1), ("_SHARED_FROM_PROMPTS", LABEL_COUNT + 1)],
    ids=["a large one", "a small one"],
)
def test_a_very_large_or_small_one_is_not_shared(
    worker: Make, redis_client: Redis, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(text_matrices, limit, value)

    check(worker(), encodings=1)

    assert not redis_client.exists(NAME)


def test_without_redis_everyone_encodes() -> None:
    worker = Worker("redis://127.0.0.1:1/0")

    check(worker, encodings=1)
    worker.matrices.close()
