"""Chooses device, batch size and backend from the settings."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cache

from clipfleet_worker.encode.backends import MakeBackend, Towers
from clipfleet_worker.encode.backends.cpu_backends import cpu_backends
from clipfleet_worker.process.device import pick_device
from clipfleet_worker.settings import WorkerSettings

_CPU_BATCH = 64
_CPU_LEAST_BATCH = 8
_GPU_BATCH = 256


@dataclass(frozen=True, slots=True)
class DeviceSetUp:
    """The device of a worker."""

    name: str  # of torch
    batch_size: int
    make_backend: MakeBackend
    least_batch: int | None = None  # see `BatchSizes`


def make_device_set_up(settings: WorkerSettings) -> DeviceSetUp:
    """Pick the device; loads nothing.

    `CLIPFLEET_BACKEND=torch` is a fallback on GPUs, too: plain passes, one at a time.

    Raises:
        UsageError: the device of the setting does not exist.
    """
    name = pick_device(settings.device)
    if name == "cpu":
        batch_size = settings.batch_size or _CPU_BATCH
        least_batch = settings.batch_size or _CPU_LEAST_BATCH  # what a user has set is kept
        return DeviceSetUp(name, batch_size, cpu_backends(settings.backend), least_batch)
    batch_size = settings.batch_size or _GPU_BATCH
    plain = cpu_backends(settings.backend, name)  # rejects backends for the CPU only
    if settings.backend == "torch":
        return DeviceSetUp(name, batch_size, plain)
    return DeviceSetUp(name, batch_size, _cuda_backends(batch_size))


def _cuda_backends(batch_size: int) -> MakeBackend:
    """Make the CUDA backends of a process, whose models share the streams of a device."""
    from clipfleet_worker.encode.backends.cuda_backend import CudaBackend  # imports torch
    from clipfleet_worker.encode.backends.cuda_device import CudaDevice

    made, lock = cache(CudaDevice), threading.Lock()

    def make(towers: Towers, device: str) -> CudaBackend:
        with lock:
            shared = made(device)
        return CudaBackend(towers, shared, batch_size)

    return make
