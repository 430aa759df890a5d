"""The device, and every model that is served: is it here, does it load, are its vectors right."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from clipfleet.errors import UsageError
from clipfleet_worker.backends.certificate import LEAST_COSINE, Unfaithful
from clipfleet_worker.backends.torch_backend import TorchBackend
from clipfleet_worker.device import pick_device, resolve_precision
from clipfleet_worker.device_set_up import DeviceSetUp, make_device_set_up
from clipfleet_worker.doctor import Finding, fine, problem, warning
from clipfleet_worker.failures import ModelUnavailableError
from clipfleet_worker.model import load_model
from clipfleet_worker.model_files import find_files
from clipfleet_worker.settings import WorkerSettings


@dataclass(frozen=True, slots=True)
class DeviceCheck:
    """What the forward passes would run on."""

    settings: WorkerSettings

    def findings(self) -> Iterator[Finding]:
        """See `Check.findings`."""
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
        """See `Check.findings`."""
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
            yield from self._loaded()
        except ModelUnavailableError as error:
            remedy = f"remove {files.folder} and run `clipfleet-worker models pull {self.model}`"
            if isinstance(error.__cause__, Unfaithful):
                remedy = f"set CLIPFLEET_PRECISION=auto or fp32; where that is off, too: {remedy}"
            yield problem(str(error), remedy)
        except MemoryError:
            yield problem(
                f"{self.model} does not fit into memory",
                "serve a smaller one, or on a machine with more of it",
            )

    def _loaded(self) -> Iterator[Finding]:
        began = time.monotonic()
        try:
            device = make_device_set_up(self.settings)  # as the worker does
        except UsageError:  # what is wrong with it is said by its own check
            device = DeviceSetUp("cpu", 1, TorchBackend)
        model = load_model(self.model, self.settings.precision, device.name, device.make_backend)
        seconds, spec = time.monotonic() - began, model.pixel_spec
        yield fine(
            f"{self.model} loads in {seconds:.1f} s: {model.embedding_dimension} dimensions, "
            f"{spec.width} x {spec.height} pixels, {model.precision} by {model.backend_name}"
        )
        yield fine(f"{self.model}: {model.certificate}")
        worst = model.worst_cosine()  # a CPU's certificate may be an old one
        if not worst >= LEAST_COSINE[model.precision]:
            yield problem(
                f"{self.model} gives wrong features: worst cosine {worst:.5f}", "look for broken memory"
            )
        best = resolve_precision(self.settings.precision, device.name)
        if model.precision is not best:
            yield warning(
                f"{self.model} is off in {best} on this device, so it runs in fp32",
                "set CLIPFLEET_PRECISION=fp32, with which it loads faster, or try another version of torch",
            )
