"""What a worker's settings mean for its device, without one."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
import torch

from clipfleet_worker.assembly.device import make_device_set_up
from clipfleet_worker.encode.backends.torch_backend import TorchBackend
from clipfleet_worker.process import device as device_module
from clipfleet_worker.settings import WorkerSettings
from tests.support.fake_device import FakeDevice
from tests.unit.worker.encode.backends.test_cpu_backends import towers_of
from tests.unit.worker.encode.backends.test_cuda_backend import towers


def settings(**values: object) -> WorkerSettings:
    return WorkerSettings(redis_url="redis://h:6379/0", **values)  # type: ignore[arg-type]  # as in the environment


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "_GPU_DRIVERS", ())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


def test_on_the_cpu_torch_runs_smaller_batches() -> None:
    found = make_device_set_up(settings(device="cpu", backend="torch"))

    assert (found.name, found.batch_size) == ("cpu", 64)
    assert found.make_backend(towers_of(torch.nn.Linear(2, 2)), "cpu").name == "torch"


def test_on_a_gpu_passes_are_larger_and_models_share_the_device(gpu: None, monkeypatch: Any) -> None:
    make_device = Mock(side_effect=lambda name: FakeDevice())
    monkeypatch.setattr("clipfleet_worker.encode.backends.cuda_device.CudaDevice", make_device)
    found = make_device_set_up(settings(device="cuda"))

    backends = [found.make_backend(towers(), found.name) for _ in range(2)]

    assert (found.name, found.batch_size) == ("cuda", 256)
    assert [backend.name for backend in backends] == ["cuda", "cuda"]
    make_device.assert_called_once_with("cuda")


def test_torch_by_itself_is_the_way_out(gpu: None) -> None:
    found = make_device_set_up(settings(device="cuda", backend="torch"))

    assert (found.batch_size, found.make_backend) == (256, TorchBackend)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_size_that_is_set_counts(gpu: None, device: str) -> None:
    assert make_device_set_up(settings(device=device, batch_size=7)).batch_size == 7
