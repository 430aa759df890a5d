"""Tests of a CUDA device (`make test-gpu`), each skipped without one; a run of nothing but skips fails."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from clipfleet.contract.jobs import DEMO_MODEL, Precision
from clipfleet_worker.encode.backends import MakeBackend
from clipfleet_worker.encode.backends.cuda_backend import CudaBackend
from clipfleet_worker.encode.backends.cuda_device import CudaDevice
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.models.loader import load_model
from tests.support.images import gradient, photo, shapes, text

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """One reason for all."""
    missing = pytest.mark.skip(reason=f"torch {torch.__version__} sees no CUDA device here")
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            # torch and its libraries warn of what is theirs: that must not fail the first run on a machine.
            item.add_marker(pytest.mark.filterwarnings("default"))
            if not torch.cuda.is_available():
                item.add_marker(missing)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run in which no test of a device ran must not look like one in which all of them passed."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    has_run = any(reporter.stats.get(outcome) for outcome in ("passed", "failed", "error"))
    if session.config.option.collectonly or not session.items:
        return
    if all(_HERE in item.path.parents for item in session.items) and not has_run:
        reporter.write_line("no test of a CUDA device has run", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


class Models:
    """The demo model on the device."""

    def __init__(self) -> None:
        self.device = CudaDevice("cuda")

    def demo(self, precision: Precision, *, batch: int = 64, way: str = "") -> LoadedModel:
        """It runs in the way that is certified, or in this one."""
        make: MakeBackend = lambda towers, _: CudaBackend(towers, self.device, batch)  # noqa: E731
        model = load_model(DEMO_MODEL, precision, "cuda", make)
        if way:
            backend_of(model).use(way)
        return model


def backend_of(model: LoadedModel) -> CudaBackend:
    backend = model._backend
    assert isinstance(backend, CudaBackend)
    return backend


@pytest.fixture(scope="session")
def models() -> Models:
    return Models()


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    """320 images of the demo model's size, uint8 (n, 64, 64, 3)."""
    kinds = (photo, gradient, shapes, text)
    return np.stack([np.asarray(kinds[n % 4](n, 64, 64).convert("RGB")) for n in range(320)])


@pytest.fixture(scope="session")
def truth() -> LoadedModel:
    """The demo model in fp32 on the CPU."""
    return load_model(DEMO_MODEL, Precision.FP32, "cpu")
