"""Forward passes on a device: fidelity, order, graphs, filling up, memory."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch

from clipfleet.contract.jobs import DEMO_MODEL, Lane, Precision
from clipfleet_worker.encode.backends import MakeBackend, PendingFeatures
from clipfleet_worker.encode.backends.certificate import GRAPH, PLAIN
from clipfleet_worker.encode.backends.cuda_backend import CudaBackend
from clipfleet_worker.encode.batcher import Batcher
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.models.loader import load_model
from tests.gpu.conftest import Models, backend_of
from tests.support.reference import cosines

PROMPTS = [f"a photo of a {what} {n}" for n in range(40) for what in ("cat", "moon", "red heart", "bicycle")]

# (mean, min) of the cosines with fp32 on the CPU: those of tests/integration/test_fidelity.py.
BARS = {Precision.FP32: (0.9999, 0.9999), Precision.FP16: (0.9995, 0.997), Precision.BF16: (0.9995, 0.997)}


def begin(model: LoadedModel, pixels: np.ndarray) -> PendingFeatures:
    """As the batcher does it."""
    return model.begin_images(np.stack(list(pixels), out=model.new_pixels(len(pixels))))


@pytest.mark.figures
@pytest.mark.parametrize("way", [PLAIN, GRAPH])
@pytest.mark.parametrize("precision", BARS)
def test_fidelity(
    models: Models, truth: LoadedModel, pixels: np.ndarray, precision: Precision, way: str
) -> None:
    model = models.demo(precision, way=way)

    for what, found in (
        ("images", cosines(model.encode_images(pixels), truth.encode_images(pixels))),
        ("texts", cosines(model.encode_texts(PROMPTS), truth.encode_texts(PROMPTS))),
    ):
        print(f"\n{precision} {what}: mean {found.mean():.6f}, min {found.min():.6f}", end="")
        mean, least = BARS[precision]
        assert found.mean() >= mean
        assert found.min() >= least


@pytest.mark.figures
def test_each_way_proves_itself(models: Models) -> None:
    # A graph may be no faster here, but it must have been recorded, and have given the right features.
    certificate = models.demo(Precision.BF16).certificate

    assert certificate is not None
    print(f"\n{certificate}", end="")
    plain, graph = certificate.ways
    assert plain.refused == ""
    assert graph.refused == "" or graph.refused.startswith("no faster")
    assert min(plain.worst_cosine, graph.worst_cosine) >= BARS[Precision.BF16][1]


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
    graphs = models.demo(Precision.BF16, way=GRAPH)
    steps = models.demo(Precision.BF16, way=PLAIN)

    for count in (64, 20, 3):
        some = pixels[:count]
        np.testing.assert_array_equal(graphs.encode_images(some), steps.encode_images(some))


def test_the_graph_of_a_model_stays_right_when_others_come_and_go(models: Models, pixels: np.ndarray) -> None:
    # cuBLAS's workspaces are shared by all that one thread does in one stream, graphs included.
    first = models.demo(Precision.BF16, way=GRAPH)
    expected = first.encode_images(pixels)

    for _ in range(3):
        models.demo(Precision.FP16, way=GRAPH).encode_images(pixels)
        gc.collect()
        torch.cuda.empty_cache()
        hog = torch.ones(1 << 26, device="cuda")
        np.testing.assert_array_equal(first.encode_images(pixels), expected)
        del hog
    assert first.worst_cosine() >= BARS[Precision.BF16][1]


def test_a_batch_larger_than_usual_goes_in_parts(models: Models, pixels: np.ndarray) -> None:
    model = models.demo(Precision.BF16)
    parts = [model.encode_images(pixels[start : start + 64]) for start in range(0, 320, 64)]

    np.testing.assert_array_equal(model.encode_images(pixels), np.concatenate(parts))


def test_a_model_is_loaded_while_another_one_works(models: Models, pixels: np.ndarray) -> None:
    # Given a batcher: what proves itself does so in its thread, while others bring weights to the device
    busy = models.demo(Precision.BF16)
    expected = busy.encode_images(pixels)
    batcher = Batcher(64)
    batcher.start()
    on_device = partial(batcher.call, lane=Lane.HIGH)
    make: MakeBackend = lambda towers, _: CudaBackend(towers, models.device, 64)  # noqa: E731
    with ThreadPoolExecutor(2) as pool:
        load = partial(load_model, DEMO_MODEL, Precision.FP16, "cuda", make, on_device=on_device)
        loading = [pool.submit(load) for _ in range(2)]
        rounds = 0
        while rounds < 50 or not all(one.done() for one in loading):
            found = batcher.call(partial(busy.encode_images, pixels), Lane.NORMAL)
            np.testing.assert_array_equal(found, expected)
            rounds += 1
    batcher.stop()

    for loaded in (one.result() for one in loading):
        assert cosines(loaded.encode_images(pixels), expected).min() >= 0.995
    assert models.device.graphs_off == ""


class TestMemory:
    """A hog leaves little of the device; batches are so large that they need more."""

    BATCH = 8192
    LEFT_BYTES = 256 << 20

    def hog(self) -> torch.Tensor:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        return torch.empty(free - self.LEFT_BYTES, dtype=torch.uint8, device="cuda")

    def test_what_does_not_fit_any_more_is_halved_and_grows_again(
        self, models: Models, truth: LoadedModel, pixels: np.ndarray
    ) -> None:
        model = models.demo(Precision.BF16, batch=self.BATCH, way=PLAIN)
        many = np.concatenate([pixels] * 13)
        right = np.concatenate([truth.encode_images(pixels)] * 13)
        hog = self.hog()

        assert cosines(model.encode_images(many), right).min() >= 0.997
        halved = backend_of(model).largest_batch
        assert halved < self.BATCH
        del hog
        torch.cuda.empty_cache()
        while backend_of(model).largest_batch == halved:
            model.encode_images(pixels)
        assert cosines(model.encode_images(many), right).min() >= 0.997

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
from clipfleet.contract.jobs import DEMO_MODEL, Precision
from clipfleet_worker.encode.backends.cuda_backend import CudaBackend
from clipfleet_worker.encode.backends.cuda_device import CudaDevice
from clipfleet_worker.process.device import is_lost
from clipfleet_worker.models.loader import load_model

model = load_model(
    DEMO_MODEL, Precision.BF16, "cuda",
    lambda towers, _: CudaBackend(towers, CudaDevice("cuda"), 8),
)
tokens = torch.full_like(model._tokenizer(["a"]), 1 << 40)  # no such token
try:
    model._backend.encode_texts(tokens)
except RuntimeError as error:
    print("lost" if is_lost(error) else f"not lost: {error}", flush=True)
import os
os._exit(0)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)

    assert done.stdout.strip() == "lost", done.stdout + done.stderr
