"""Parts of a batch that go through torch side by side: features in order, each thread with its share."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from clipfleet_worker.backends.side_by_side import SideBySideBackend
from clipfleet_worker.backends.torch_backend import TorchBackend
from clipfleet_worker.thread_rule import passes_side_by_side
from tests.support.waiting import wait_until
from tests.unit.test_cpu_backends import towers_of
from tests.unit.test_model import SIZE, TinyModule

THREADS = 4
PATIENCE_SECONDS = 20.0


class Watched(TinyModule):
    """Notes by how many threads of torch's a pass may be run, and may let no part go on alone."""

    def __init__(self, side_by_side: int = 1) -> None:
        super().__init__()
        self.threads: list[int] = []
        self.sizes: list[int] = []
        self.together = threading.Barrier(side_by_side)

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        self.threads.append(torch.get_num_threads())
        self.sizes.append(len(images))
        self.together.wait(PATIENCE_SECONDS)
        return super().encode_image(images)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """As on a machine of four cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def forward_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("forward")]


@pytest.mark.parametrize("count", [1, 2, 5, 64])
def test_features_are_those_of_one_pass_in_order(count: int) -> None:
    one, several = (make(towers_of(TinyModule()), "cpu") for make in (TorchBackend, SideBySideBackend))
    tokens = torch.arange(4 * count).reshape(count, 4) + 1

    found = several.begin_images(pictures(count)).result()

    np.testing.assert_array_equal(found, one.begin_images(pictures(count)).result())
    np.testing.assert_array_equal(several.encode_texts(tokens), one.encode_texts(tokens))
    assert found.dtype == np.float32


def test_the_parts_of_a_batch_are_worked_on_at_the_same_time() -> None:
    module = Watched(side_by_side=2)

    assert len(SideBySideBackend(towers_of(module), "cpu").begin_images(pictures(7)).result()) == 7

    assert sorted(module.sizes) == [3, 4]


def test_a_second_batch_may_be_begun_before_the_first_is_there() -> None:
    module = Watched(side_by_side=2)
    backend = SideBySideBackend(towers_of(module), "cpu")

    begun = [backend.begin_images(pictures(2)) for _ in range(backend.batches_in_flight)]

    assert [len(pending.result()) for pending in begun] == [2, 2]


def test_each_thread_has_its_share_and_all_others_have_what_they_had() -> None:
    module, others = Watched(), []

    SideBySideBackend(towers_of(module), "cpu").begin_images(pictures(8)).result()

    another = threading.Thread(target=lambda: others.append(torch.get_num_threads()))
    another.start()
    another.join()
    assert module.threads == [2, 2]
    assert [*others, torch.get_num_threads()] == [THREADS, THREADS]


def test_a_part_without_memory_is_told_when_the_result_is_asked_for() -> None:
    module = TinyModule()
    module.error = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
    backend = SideBySideBackend(towers_of(module), "cpu")

    pending = backend.begin_images(pictures(4))

    with pytest.raises(MemoryError):
        pending.result()
    module.error = None
    assert len(backend.begin_images(pictures(4)).result()) == 4


def test_its_threads_end_with_it() -> None:
    before = len(forward_threads())
    backend = SideBySideBackend(towers_of(TinyModule()), "cpu")
    backend.warm_up()
    assert len(forward_threads()) == before + 2

    del backend

    wait_until(lambda: len(forward_threads()) <= before, "the threads have ended", PATIENCE_SECONDS)


def test_another_device_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="cuda"):
        SideBySideBackend(towers_of(TinyModule()), "cuda")


@pytest.mark.parametrize(
    ("threads", "expected"), [(1, (1, 1)), (2, (2, 1)), (3, (3, 1)), (4, (2, 2)), (5, (2, 2)), (16, (2, 8))]
)
def test_no_pass_has_more_threads_than_its_share(threads: int, expected: tuple[int, int]) -> None:
    assert passes_side_by_side(threads) == expected
