"""A model is loaded in the sight of the watchdog, and proves itself in the thread of the device."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from clipfleet.contract.jobs import Precision
from clipfleet_worker.assembly import models
from clipfleet_worker.assembly.device import DeviceSetUp
from clipfleet_worker.assembly.models import Load, ModelLoader
from clipfleet_worker.encode.backends.torch_backend import TorchBackend
from clipfleet_worker.encode.batcher import Batcher
from clipfleet_worker.encode.fake_encoder import FakeEncoder
from clipfleet_worker.failures import WorkerShortageError
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.models.loading import Loading
from clipfleet_worker.process.watchdog import Watchdog


@pytest.fixture
def batcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[Batcher]:
    monkeypatch.setattr(models, "fetch_files", lambda name, on_bytes: Path(name))
    batcher = Batcher(4)
    batcher.start()
    yield batcher
    batcher.stop()


def load_by(batcher: Batcher, watchdog: Watchdog, load: Load) -> LoadedModel:
    loader = ModelLoader(load, DeviceSetUp("cpu", 4, TorchBackend), batcher, watchdog)
    return loader("demo", Precision.FP32, Loading())


def test_a_model_proves_itself_in_the_thread_of_the_device(batcher: Batcher) -> None:
    watchdog, seen = Watchdog(), list[str]()

    def load(*options: object) -> LoadedModel:
        options[-1](lambda: seen.append(threading.current_thread().name))  # type: ignore[operator]
        seen.extend(phase.name for phase in watchdog.phases())
        return cast(LoadedModel, FakeEncoder())

    load_by(batcher, watchdog, load)

    assert seen == ["batcher", "load demo"]
    assert watchdog.phases() == []


def test_one_that_loads_when_the_worker_stops_ends_no_process(batcher: Batcher) -> None:
    # A thread that ends with any other exception would.
    batcher.stop()

    with pytest.raises(WorkerShortageError, match="demo is not needed any more"):
        load_by(batcher, Watchdog(), lambda *options: options[-1](lambda: None))
