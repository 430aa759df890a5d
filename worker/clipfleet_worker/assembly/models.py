"""Loads models under the eyes of the watchdog."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from clipfleet.contract.jobs import Lane, Precision
from clipfleet_worker.assembly.device import DeviceSetUp
from clipfleet_worker.encode.backends import MakeBackend
from clipfleet_worker.encode.batcher import Batcher, BatcherStopped
from clipfleet_worker.failures import WorkerShortageError
from clipfleet_worker.models.files import fetch_files
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.models.loader import OnDevice, OnPixelSpec
from clipfleet_worker.models.loading import Loading
from clipfleet_worker.process.cores import set_forward_threads
from clipfleet_worker.process.watchdog import LOAD_LIMIT_SECONDS, Watchdog

Load: TypeAlias = Callable[[str, Precision, str, MakeBackend, OnPixelSpec, OnDevice], LoadedModel]


@dataclass(frozen=True, slots=True)
class ModelLoader:
    """Downloads a model if need be, and loads it onto the device of the worker."""

    load: Load
    device: DeviceSetUp
    batcher: Batcher
    watchdog: Watchdog

    def __call__(self, name: str, precision: Precision, loading: Loading) -> LoadedModel:
        with self.watchdog.activity("model loader", f"load {name}", LOAD_LIMIT_SECONDS) as pulse:
            pulse.rest(f"download {name}")  # the network has limits of its own
            fetch_files(name, loading.note_download)
            pulse.enter(f"load {name}", LOAD_LIMIT_SECONDS)
            set_forward_threads()
            try:
                return self.load(
                    name,
                    precision,
                    self.device.name,
                    self.device.make_backend,
                    loading.announce,
                    partial(self.batcher.call, lane=Lane.HIGH),
                )
            except BatcherStopped as error:
                raise WorkerShortageError(f"{name} is not needed any more: {error}") from error
