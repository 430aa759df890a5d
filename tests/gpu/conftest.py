"""Tests of a CUDA device (`make test-gpu`), each skipped without one; a run of nothing but skips fails."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from clipfleet.contract import DEMO_MODEL, Precision
from clipfleet_worker.backends.accelerator import Work
from clipfleet_worker.backends.compiling import Compiler
from clipfleet_worker.backends.cuda_backend import CudaBackend
from clipfleet_worker.backends.cuda_device import CudaDevice
from clipfleet_worker.model import LoadedModel, load_model
from tests.support.pictures import gradient, photo, shapes, text

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """One reason for all."""
    missing = pytest.mark.skip(reason=f"torch {torch.__version__} sees no CUDA device here")
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
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


class NotCompiled:
    """Stands in for a `Compiler`."""

    def compiled(self, forward: object) -> None:
        return None


class WithoutGraphs(CudaDevice):
    """Runs all passes step by step."""

    def recorded(self, work: Work, pool: object) -> Work:
        raise RuntimeError("no graphs in this test")


class Models:
    """The demo model in all ways; what compiles keeps it in a folder of the tests' own."""

    def __init__(self, folder: Path) -> None:
        self.device = CudaDevice("cuda")
        self.stepwise = WithoutGraphs("cuda")
        self._compiler = Compiler(folder)

    def demo(
        self,
        precision: Precision,
        *,
        batch: int = 64,
        with_compiler: bool = False,
        with_graphs: bool = True,
        with_warm_up: bool = True,
    ) -> LoadedModel:
        device = self.device if with_graphs else self.stepwise
        compiler = self._compiler if with_compiler else NotCompiled()
        model = load_model(
            DEMO_MODEL,
            precision,
            "cuda",
            lambda towers, _: CudaBackend(towers, device, batch, compiler),  # type: ignore[arg-type]  # a double
        )
        if with_warm_up:
            model.warm_up()
        return model


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    """320 pictures of the demo model's size, uint8 (n, 64, 64, 3)."""
    kinds = (photo, gradient, shapes, text)
    return np.stack([np.asarray(kinds[n % 4](n, 64, 64).convert("RGB")) for n in range(320)])


@pytest.fixture(scope="session")
def truth() -> LoadedModel:
    """The demo model in fp32 on the processor."""
    return load_model(DEMO_MODEL, Precision.FP32, "cpu")
