"""The device, and every model that is served: is it here, does it load, does it give vectors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from clipfleet.errors import UsageError
from clipfleet_worker.backends.cpu_backends import cpu_backends
from clipfleet_worker.backends.torch_backend import TorchBackend
from clipfleet_worker.device import pick_device, resolve_precision
from clipfleet_worker.device_set_up import make_device_set_up
from clipfleet_worker.doctor import Finding, fine, problem, warning
from clipfleet_worker.failures import ModelUnavailableError
from clipfleet_worker.model import load_model
from clipfleet_worker.model_files import find_files
from clipfleet_worker.settings import WorkerSettings

_OFF = 1e-3  # of a vector's length


@dataclass(frozen=True, slots=True)
class DeviceCheck:
    """What the forward passes would run on."""

    settings: WorkerSettings

    def findings(self) -> Iterator[Finding]:
        """See `Check`."""
        import torch

        try:
            device = pick_device(self.settings.device)
            precision = resolve_precision(self.settings.precision, device)
        except UsageError as error:
            what, _, way_out = str(error).partition("; ")
            yield problem(what, way_out or "set CLIPFLEET_DEVICE=auto, or install torch for this GPU")
            return
        except ModelUnavailableError as error:
            what, _, way_out = str(error).partition(": ")
            yield problem(what, f"CLIPFLEET_PRECISION: {way_out}")
            return
        try:
            make_device_set_up(self.settings)  # as the worker does
        except UsageError as error:
            what, _, way_out = str(error).partition(": ")
            yield problem(what, way_out)
            return
        name = f" ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else ""
        yield fine(f"{device}{name}, {precision}, torch {torch.__version__}")


@dataclass(frozen=True, slots=True)
class ModelCheck:
    """One of the models that are served."""

    settings: WorkerSettings
    model: str

    def findings(self) -> Iterator[Finding]:
        """See `Check`."""
        try:
            files = find_files(self.model)
        except ModelUnavailableError as error:
            yield problem(
                f"{self.model}: {error}",
                "correct CLIPFLEET_MODELS; `clipfleet-worker models list --all` lists names",
            )
            return
        if files is None:
            yield warning(
                f"{self.model} is not on this machine: the first job for it waits for the download",
                f"clipfleet-worker models pull {self.model}",
            )
            return
        try:
            yield self._loaded()
        except ModelUnavailableError as error:
            yield problem(
                str(error), f"remove {files.folder} and run `clipfleet-worker models pull {self.model}`"
            )
        except MemoryError:
            yield problem(
                f"{self.model} does not fit into memory",
                "serve a smaller one, or on a machine with more of it",
            )

    def _loaded(self) -> Finding:
        began = time.monotonic()
        try:
            device = pick_device(self.settings.device)
        except UsageError:
            device = "cpu"  # what is wrong with the device is said by its own check
        try:
            make_backend = cpu_backends(self.settings.backend, device)
        except UsageError:
            make_backend = TorchBackend  # likewise
        model = load_model(self.model, self.settings.precision, device, make_backend)
        loaded_seconds = time.monotonic() - began
        spec = model.pixel_spec
        vectors = np.concatenate(
            [
                model.encode_images(np.full((1, spec.height, spec.width, 3), 127, dtype=np.uint8)),
                model.encode_texts(["a picture"]),
            ]
        )
        lengths = np.linalg.norm(vectors, axis=1)
        if not np.all(np.abs(lengths - 1) < _OFF):  # also where they are not numbers
            return problem(
                f"{self.model} gives vectors of length {lengths[0]:.3g} and {lengths[1]:.3g}, not 1",
                "its weights are damaged or overflow: try CLIPFLEET_PRECISION=fp32, or pull it again",
            )
        return fine(
            f"{self.model} loads in {loaded_seconds:.1f} s: {vectors.shape[1]} dimensions, "
            f"{spec.width} x {spec.height} pixels, {model.precision}"
        )
