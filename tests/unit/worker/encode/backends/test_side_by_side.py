"""Parts of a batch that go through torch side by side: features in order, each thread with its share."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from clipfleet_worker.encode.backends.side_by_side import Passes, SideBySideBackend, SideBySideBackends
from clipfleet_worker.encode.backends.torch_backend import TorchBackend
from clipfleet_worker.process.cores import passes_side_by_side
from tests.support.doubles import PATIENCE_SECONDS
from tests.support.waiting import wait_until
from tests.unit.worker.encode.backends.test_cpu_backends import towers_of
from tests.unit.worker.models.test_loaded import SIZE, TinyModule

THREADS = 4


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


class Cramped(TinyModule):
    """Has memory for so many images at a time."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.lock = threading.Lock()
        self.others = threading.Barrier(2)

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        with self.lock:
            self.room -= len(images)
            is_too_much = self.room < 0
        try:
            if is_too_much:
                raise RuntimeError(
                    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"
                )
            try:
                self.others.wait(0.2)  # stay a while, so that others come
            except threading.BrokenBarrierError:
                self.others.reset()
            return super().encode_image(images)
        finally:
            with self.lock:
                self.room += len(images)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """As on a machine of four cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


def by_torch(module: torch.nn.Module) -> TorchBackend:
    return TorchBackend(towers_of(module), "cpu")


def backend_of(module: torch.nn.Module) -> SideBySideBackend:
    return SideBySideBackend(by_torch(module), Passes(THREADS))


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (count, SIZE, SIZE, 3), dtype=np.uint8)


def forward_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("forward-")}


def test_an_empty_batch_has_no_features() -> None:
    assert backend_of(TinyModule()).begin_images(images(0)).result().shape[0] == 0


def test_the_parts_of_a_batch_are_worked_on_at_the_same_time() -> None:
    module = Watched(side_by_side=2)

    assert len(backend_of(module).begin_images(images(7)).result()) == 7

    assert sorted(module.sizes) == [3, 4]


def test_there_is_room_when_the_first_part_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a part that takes as long as the test wants: the one whose first value is 255
    go_on, encode = threading.Event(), TinyModule.encode_image

    def encode_image(module: TinyModule, images: torch.Tensor) -> torch.Tensor:
        assert float(images[0, 0, 0, 0]) != 1.0 or go_on.wait(PATIENCE_SECONDS)
        return encode(module, images)

    monkeypatch.setattr(TinyModule, "encode_image", encode_image)
    backend, batch = backend_of(TinyModule()), images(2)
    batch[1] = 255
    pending = backend.begin_images(batch)

    pending.wait_for_room()

    behind = backend.begin_images(images(1))
    assert len(behind.result()) == 1  # while the second part of the first batch is under way
    go_on.set()
    assert len(pending.result()) == 2


def test_each_thread_has_its_share_and_all_others_have_what_they_had() -> None:
    module, others = Watched(), []

    backend_of(module).begin_images(images(8)).result()

    another = threading.Thread(target=lambda: others.append(torch.get_num_threads()))
    another.start()
    another.join()
    assert module.threads == [2, 2]
    assert [*others, torch.get_num_threads()] == [THREADS, THREADS]


@pytest.mark.parametrize(("room", "counts"), [(2, (4, 4)), (3, (4, 4)), (2, (4, 1)), (1, (1, 1))])
def test_memory_that_is_enough_for_one_part_is_enough(room: int, counts: tuple[int, int]) -> None:
    # None of the images is at fault: they must not end as failed rows.
    backend, roomy = backend_of(Cramped(room)), backend_of(TinyModule())

    begun = [backend.begin_images(images(count)) for count in counts]

    for pending, count in zip(begun, counts, strict=True):
        np.testing.assert_array_equal(pending.result(), roomy.begin_images(images(count)).result())


def test_a_part_without_memory_is_told_when_the_result_is_asked_for() -> None:
    backend = backend_of(Cramped(1))

    pending = backend.begin_images(images(4))

    with pytest.raises(MemoryError):
        pending.result()
    assert len(backend.begin_images(images(1)).result()) == 1


def test_a_bug_ends_its_thread_and_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    died: list[BaseException | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: died.append(arguments.exc_value))
    module = TinyModule()
    module.error = TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        backend_of(module).begin_images(images(4)).result()

    wait_until(lambda: len(died) == 2, "both threads have ended")
    assert set(died) == {module.error}


def test_models_of_a_process_share_the_threads_which_end_with_the_last_one() -> None:
    gc.collect()
    before = forward_threads()
    made = SideBySideBackends()
    backends = [made.make(lambda _: by_torch(TinyModule())) for _ in range(2)]
    ours = forward_threads() - before
    assert [len(backend.begin_images(images(4)).result()) for backend in backends] == [4, 4]
    assert len(ours) == 2

    del made, backends
    gc.collect()

    wait_until(lambda: not ours & forward_threads(), "the threads have ended")


def test_on_one_core_a_pass_is_torchs_own() -> None:
    torch.set_num_threads(1)

    assert type(SideBySideBackends().make(lambda _: by_torch(TinyModule()))) is TorchBackend


def test_a_pass_that_hangs_does_not_keep_a_process_from_its_end() -> None:
    code = """
import threading
from clipfleet_worker.encode.backends.side_by_side import Passes
Passes(2).submit(threading.Event().wait)
"""
    path = {"PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=path, timeout=60, check=True)


@pytest.mark.parametrize(
    ("threads", "expected"), [(1, (1, 1)), (2, (2, 1)), (3, (3, 1)), (4, (2, 2)), (5, (2, 2)), (16, (2, 8))]
)
def test_no_pass_has_more_threads_than_its_share(threads: int, expected: tuple[int, int]) -> None:
    assert passes_side_by_side(threads) == expected
