"""What a worker's settings mean for its device: which one, how much at a time, who runs forward passes."""

from __future__ import annotations

from dataclasses import dataclass

from clipfleet.errors import UsageError
from clipfleet_worker.backends import MakeBackend
from clipfleet_worker.backends.compiling import Compiler, cache_folder
from clipfleet_worker.backends.cpu_backends import cpu_backends
from clipfleet_worker.backends.cuda_backend import CudaBackends
from clipfleet_worker.backends.openvino_cache import CompiledModels, default_folder
from clipfleet_worker.device import pick_device
from clipfleet_worker.device_jpegs import JpegDevice
from clipfleet_worker.settings import WorkerSettings

_CPU_BATCH = 64
_GPU_BATCH = 256


@dataclass(frozen=True, slots=True)
class DeviceSetUp:
    """The device of a worker."""

    name: str  # torch's
    batch_size: int
    make_backend: MakeBackend
    jpegs: JpegDevice | None  # decodes them beside the processor


def make_device_set_up(settings: WorkerSettings) -> DeviceSetUp:
    """Pick the device; nothing is loaded.

    `CLIPFLEET_BACKEND=torch` is the way out on a GPU, too: plain passes, one at a time.

    `CLIPFLEET_DECODE=auto` is the processor until somebody has measured a GPU that gains by decoding: a core
    decodes 1,000 pictures of 640 x 480 a second, and pictures that are not much larger than the model's most
    GPUs may not decode, see `device_jpegs`.

    Raises:
        UsageError: a device is asked for that is not there.
    """
    name = pick_device(settings.device)
    if name == "cpu":
        if settings.decode == "cuda":
            raise UsageError(
                "CLIPFLEET_DECODE is cuda, but the worker's device is the processor: set auto or cpu"
            )
        batch_size = settings.batch_size or _CPU_BATCH
        kept = CompiledModels(default_folder())
        return DeviceSetUp(name, batch_size, cpu_backends(settings.backend, kept=kept), None)
    batch_size = settings.batch_size or _GPU_BATCH
    backends = CudaBackends(batch_size, Compiler(cache_folder()))
    plain = cpu_backends(settings.backend, name)  # refuses what is for the processor only
    jpegs = backends.device(name) if settings.decode == "cuda" else None
    return DeviceSetUp(name, batch_size, plain if settings.backend == "torch" else backends, jpegs)
