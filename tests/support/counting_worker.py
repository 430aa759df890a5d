"""A worker that notes how many texts it encodes: `python -m tests.support.counting_worker NOTES`.

NOTES gets a line with the number of texts of each call.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from clipfleet.contract.jobs import Precision
from clipfleet.settings import checked
from clipfleet_worker.assembly.worker import Worker
from clipfleet_worker.encode.backends import Backend, MakeBackend
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.models.loader import OnDevice, OnPixelSpec, load_model
from clipfleet_worker.process.logs import log_to_stderr
from clipfleet_worker.settings import WorkerSettings


class CountingBackend:
    """Another backend, whose texts are counted."""

    def __init__(self, backend: Backend, notes: Path) -> None:
        self._backend = backend
        self._notes = notes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def encode_texts(self, tokens: Any) -> np.ndarray:
        with self._notes.open("a") as notes:
            notes.write(f"{len(tokens)}\n")
        return self._backend.encode_texts(tokens)


def load_counted(
    notes: Path,
    name: str,
    precision: Precision,
    device: str,
    make_backend: MakeBackend,
    on_pixel_spec: OnPixelSpec,
    on_device: OnDevice,
) -> LoadedModel:
    model = load_model(name, precision, device, make_backend, on_pixel_spec, on_device)
    model._backend = cast(Backend, CountingBackend(model._backend, notes))  # its canaries do not count
    return model


if __name__ == "__main__":
    log_to_stderr()
    load = partial(load_counted, Path(sys.argv[1]))
    sys.exit(Worker(checked(WorkerSettings), preload=True, load_model=load).run())
