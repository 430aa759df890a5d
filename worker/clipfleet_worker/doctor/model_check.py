"""Checks the device, and that every served model is here, loads, and gives the right vectors."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator

from clipfleet.errors import UsageError
from clipfleet_worker.assembly.device import DeviceSetUp, make_device_set_up
from clipfleet_worker.doctor import Finding, fine, problem, warning
from clipfleet_worker.encode.backends.certificate import LEAST_COSINE, Unfaithful
from clipfleet_worker.encode.backends.torch_backend import TorchBackend
from clipfleet_worker.encode.bisecting import FORWARD_ERRORS
from clipfleet_worker.failures import ModelUnavailableError, first_line
from clipfleet_worker.models.files import find_files
from clipfleet_worker.models.loader import load_model
from clipfleet_worker.process.cores import set_forward_threads
from clipfleet_worker.process.device import pick_device, resolve_precision
from clipfleet_worker.settings import WorkerSettings


def device_findings(settings: WorkerSettings) -> Iterator[Finding]:
    """Check the device of the forward passes."""
    import torch

    try:
        device = pick_device(settings.device)
        precision = resolve_precision(settings.precision, device)
    except UsageError as error:
        what, _, way_out = str(error).partition("; ")
        yield problem(what, way_out or "set CLIPFLEET_DEVICE=auto, or install torch for this GPU")
        return
    except ModelUnavailableError as error:
        what, _, way_out = str(error).partition("; ")
        yield problem(what, f"CLIPFLEET_PRECISION: {way_out}")
        return
    try:
        make_device_set_up(settings)  # as the worker does
    except UsageError as error:
        what, _, way_out = str(error).partition("; ")
        yield problem(what, way_out)
        return
    name = f" ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else ""
    yield fine(f"{device}{name}, {precision}, torch {torch.__version__}")


def model_findings(settings: WorkerSettings, name: str) -> Iterator[Finding]:
    """Check one served model."""
    try:
        files = find_files(name)
    except ModelUnavailableError as error:
        yield problem(
            f"{name}: {error}",
            "correct CLIPFLEET_MODELS; `clipfleet-worker models list --all` prints the names",
        )
        return
    if files is None:
        yield warning(
            f"{name} is not on this machine: its first job waits for the download",
            f"run `clipfleet-worker models pull {shlex.quote(name)}`",
        )
        return
    try:
        yield from _of_loading(settings, name)
    except ModelUnavailableError as error:
        remedy = f"remove {files.folder} and run `clipfleet-worker models pull {shlex.quote(name)}`"
        if isinstance(error.__cause__, Unfaithful):
            remedy = f"set CLIPFLEET_PRECISION=auto or fp32; if that is wrong, too: {remedy}"
        yield problem(str(error), remedy)
    except MemoryError:
        yield problem(
            f"{name} does not fit into memory",
            "serve a smaller model, or use a machine with more memory",
        )
    except FORWARD_ERRORS as error:
        yield problem(
            f"{name} fails on this device: {first_line(error)}",
            "check device and driver (`nvidia-smi`), or set CLIPFLEET_DEVICE=cpu",
        )


def _of_loading(settings: WorkerSettings, name: str) -> Iterator[Finding]:
    began = time.monotonic()
    try:
        device = make_device_set_up(settings)  # as the worker does
    except UsageError:  # its own check reports it
        device = DeviceSetUp("cpu", 1, TorchBackend)
    set_forward_threads()  # OpenVINO caches compiled models by this number
    model = load_model(name, settings.precision, device.name, device.make_backend)
    seconds, spec = time.monotonic() - began, model.pixel_spec
    yield fine(
        f"{name} loads in {seconds:.1f} s: {model.embedding_dimension} dimensions, "
        f"{spec.width} x {spec.height} pixels, {model.precision} by {model.backend_name}"
    )
    yield fine(f"{name}: {model.certificate}")
    worst = model.worst_cosine()  # a CPU's certificate may be an old one
    if not worst >= LEAST_COSINE[model.precision]:
        yield problem(f"{name} gives wrong features: worst cosine {worst:.5f}", "test this machine's memory")
    best = resolve_precision(settings.precision, device.name)
    if model.precision is not best:
        yield warning(
            f"{name} gives wrong features in {best} on this device, so it runs in fp32",
            "set CLIPFLEET_PRECISION=fp32, so that it loads faster, or try another version of torch",
        )
