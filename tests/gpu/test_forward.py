"""Forward passes on a device: fidelity, order, graphs, filling up, memory."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from clipfleet.contract import Precision
from clipfleet_worker.backends import PendingFeatures
from clipfleet_worker.backends.cuda_backend import CudaBackend
from clipfleet_worker.model import LoadedModel
from tests.gpu.conftest import Models
from tests.support.reference import cosines

PROMPTS = [f"a photo of a {what} {n}" for n in range(40) for what in ("cat", "moon", "red heart", "bicycle")]

# (mean, min) of the cosines with fp32 on the processor: those of tests/integration/test_fidelity.py.
BARS = {
    Precision.FP32: (0.9999, 0.9999),
    Precision.FP16: (0.9995, 0.997),
    Precision.BF16: (0.9995, 0.997),
}


def backend_of(model: LoadedModel) -> CudaBackend:
    backend = model._backend
    assert isinstance(backend, CudaBackend)
    return backend


def begin(model: LoadedModel, pixels: np.ndarray) -> PendingFeatures:
    """As the batcher does it."""
    return model.begin_images(np.stack(list(pixels), out=model.new_pixels(len(pixels))))


@pytest.mark.figures
@pytest.mark.timeout(900)  # it compiles
@pytest.mark.parametrize("with_compiler", [False, True], ids=["plain", "compiled"])
@pytest.mark.parametrize("precision", BARS)
def test_fidelity(
    models: Models, truth: LoadedModel, pixels: np.ndarray, precision: Precision, with_compiler: bool
) -> None:
    model = models.demo(precision, with_compiler=with_compiler)

    for what, found in (
        ("images", cosines(model.encode_images(pixels), truth.encode_images(pixels))),
        ("texts", cosines(model.encode_texts(PROMPTS), truth.encode_texts(PROMPTS))),
    ):
        print(f"\n{precision} {what}: mean {found.mean():.6f}, min {found.min():.6f}", end="")
        mean, least = BARS[precision]
        assert found.mean() >= mean
        assert found.min() >= least


def test_two_batches_under_way_give_what_one_at_a_time_gives(models: Models, pixels: np.ndarray) -> None:
    model = models.demo(Precision.BF16)
    batches = [pixels[start : start + 64] for start in (0, 64, 128, 192, 256)] * 20
    alone = [begin(model, batch).result() for batch in batches[:5]]

    under_way: deque[PendingFeatures] = deque()
    found = []
    for batch in batches:
        under_way.append(begin(model, batch))
        if len(under_way) == 2:
            found.append(under_way.popleft().result())
    found.append(under_way.popleft().result())

    for number, features in enumerate(found):
        np.testing.assert_array_equal(features, alone[number % 5])


def test_a_graph_gives_what_its_steps_give_bit_for_bit(models: Models, pixels: np.ndarray) -> None:
    graphs = models.demo(Precision.BF16)
    steps = models.demo(Precision.BF16, with_graphs=False)

    for count in (64, 20, 3):
        np.testing.assert_array_equal(
            graphs.encode_images(pixels[:count]), steps.encode_images(pixels[:count])
        )
    np.testing.assert_array_equal(graphs.encode_texts(PROMPTS), steps.encode_texts(PROMPTS))


def test_what_fills_a_batch_up_changes_no_row(models: Models, pixels: np.ndarray) -> None:
    # Given a size of 16, alone in it or with others
    model = models.demo(Precision.BF16)
    full = model.encode_images(pixels[:16])

    for count in (5, 9, 15):
        np.testing.assert_array_equal(model.encode_images(pixels[:count]), full[:count])


def test_a_batch_larger_than_usual_goes_in_parts(models: Models, pixels: np.ndarray) -> None:
    model = models.demo(Precision.BF16)
    parts = [model.encode_images(pixels[start : start + 64]) for start in range(0, 320, 64)]

    np.testing.assert_array_equal(model.encode_images(pixels), np.concatenate(parts))


def test_a_model_is_loaded_while_another_one_works(models: Models, pixels: np.ndarray) -> None:
    # Recording a graph is spoilt by much that others may do meanwhile.
    busy = models.demo(Precision.BF16)
    expected = busy.encode_images(pixels)
    with ThreadPoolExecutor(2) as pool:
        loading = [pool.submit(models.demo, Precision.FP16) for _ in range(2)]
        rounds = 0
        while rounds < 50 or not all(one.done() for one in loading):
            np.testing.assert_array_equal(busy.encode_images(pixels), expected)
            rounds += 1

    for loaded in (one.result() for one in loading):
        assert backend_of(loaded)._images._can_record
        assert cosines(loaded.encode_images(pixels), expected).min() >= 0.995


class TestMemory:
    """A hog leaves little of the device; batches are so large that they need more."""

    BATCH = 8192
    LEFT_BYTES = 256 << 20

    @pytest.fixture(params=[True, False], ids=["graphs", "steps"])
    def large(self, models: Models, request: pytest.FixtureRequest) -> LoadedModel:
        return models.demo(Precision.BF16, batch=self.BATCH, with_graphs=request.param, with_warm_up=False)

    def hog(self) -> torch.Tensor:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        return torch.empty(free - self.LEFT_BYTES, dtype=torch.uint8, device="cuda")

    def test_what_does_not_fit_when_it_is_loaded_is_halved_and_stays_so(
        self, large: LoadedModel, truth: LoadedModel, pixels: np.ndarray
    ) -> None:
        hog = self.hog()
        large.warm_up()
        halved = backend_of(large).largest_batch
        del hog
        torch.cuda.empty_cache()

        assert 1 <= halved < self.BATCH
        many = np.concatenate([pixels] * 4)
        assert cosines(large.encode_images(many), truth.encode_images(many)).min() >= 0.997
        assert backend_of(large).largest_batch == halved

    def test_what_does_not_fit_any_more_is_halved(
        self, models: Models, truth: LoadedModel, pixels: np.ndarray
    ) -> None:
        model = models.demo(Precision.BF16, batch=self.BATCH, with_graphs=False)
        many = np.concatenate([pixels] * 13)
        hog = self.hog()

        features = model.encode_images(many)
        del hog
        torch.cuda.empty_cache()

        assert cosines(features, np.concatenate([truth.encode_images(pixels)] * 13)).min() >= 0.997
        assert backend_of(model).largest_batch < self.BATCH

    def test_an_unloaded_model_leaves_nothing_behind(self, models: Models, pixels: np.ndarray) -> None:
        models.demo(Precision.BF16).encode_images(pixels)
        gc.collect()
        before = torch.cuda.memory_allocated()

        for _ in range(3):
            models.demo(Precision.BF16).encode_images(pixels)

        gc.collect()
        assert torch.cuda.memory_allocated() <= before + (1 << 20)


def test_a_device_that_is_lost_is_told_from_a_batch_that_fails() -> None:
    # In a process of its own, which can use no device afterwards
    code = """
import torch
from clipfleet.contract import DEMO_MODEL, Precision
from clipfleet_worker.backends.cuda_backend import CudaBackend
from clipfleet_worker.backends.cuda_device import CudaDevice
from clipfleet_worker.device import is_lost
from clipfleet_worker.model import load_model

class NotCompiled:
    def compiled(self, forward):
        return None

model = load_model(
    DEMO_MODEL, Precision.BF16, "cuda",
    lambda towers, _: CudaBackend(towers, CudaDevice("cuda"), 8, NotCompiled()),
)
model.warm_up()
try:
    model._backend.encode_texts(torch.full((1, 77), 1 << 40))  # no such token
except RuntimeError as error:
    print("lost" if is_lost(error) else f"not lost: {error}", flush=True)
import os
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=280, check=False
    )

    assert done.stdout.strip() == "lost", done.stdout + done.stderr
