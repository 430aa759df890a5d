"""Checks the resources of this machine or container, its decoders, and the spelling of settings."""

from __future__ import annotations

import errno
import io
import os
import resource
import socket
import tempfile
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from clipfleet.contract.jobs import DEMO_MODEL, DecodeRoute, Precision
from clipfleet.settings import doubtful_variables
from clipfleet.wording import counted
from clipfleet_worker.decode.codecs import missing_codec
from clipfleet_worker.decode.decoder import Decoder
from clipfleet_worker.decode.formats import ALLOWED_FORMATS
from clipfleet_worker.doctor import Finding, fine, problem, warning
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.models.loader import load_model
from clipfleet_worker.pixel_spec import PixelSpec
from clipfleet_worker.process.cores import cpus
from clipfleet_worker.process.memory_guard import memory_limit
from clipfleet_worker.process.start import files_needed
from clipfleet_worker.settings import WorkerSettings
from clipfleet_worker.stores import has_store_extra

_MOST_THREADS_PER_CPU = 4
_LITTLE_BYTES = 2 << 30  # Python, torch and a model of 600 MB, and images
_SIZES = ((640, 480), (2999, 2001))
_MOST_GREY_LEVELS = 4.0  # that one pixel in a thousand may be off by, see tests/integration/test_fidelity.py
_REMEDY = "reinstall simplejpeg, torch and pillow (`pip install --force-reinstall`), or use --decode exact"


def settings_findings(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Find variables that look like settings but are not."""
    doubtful = list(doubtful_variables(WorkerSettings, environment, has_all=True))
    for variable, meant in doubtful:
        yield warning(f"{variable} is not a setting", f"did you mean {meant}?" if meant else "remove it")
    if not doubtful:
        yield fine("every CLIPFLEET_ variable is a setting")


def machine_findings(settings: WorkerSettings) -> Iterator[Finding]:
    """Check CPUs, memory, open files, scratch space, the extra `[store]` and the health port."""
    limit = memory_limit(settings.max_memory_bytes)
    yield fine(f"{cpus()} CPUs, at most {limit / (1 << 30):.1f} GiB of memory for the worker")
    if limit < _LITTLE_BYTES:
        yield warning(
            f"{limit >> 20} MiB of memory may be too little for a model and its images",
            "give the container 2 GiB or more, or raise CLIPFLEET_MAX_MEMORY_BYTES",
        )
    yield from _of_memory_setting(settings.max_memory_bytes)
    if settings.decode_threads > _MOST_THREADS_PER_CPU * cpus():
        yield warning(
            f"CLIPFLEET_DECODE_THREADS is {settings.decode_threads}, with {cpus()} CPUs",
            "unset it: one thread per CPU is the best number",
        )
    yield from _of_open_files(settings.total_connections)
    yield from _of_scratch()
    yield _of_stores()
    if settings.health_port:
        yield _of_port(settings.health_host, settings.health_port)


def decode_findings(max_pixels: int) -> Iterator[Finding]:
    """Check which formats are read, and that the fast route gives the pixels of open_clip's transform."""
    yield from _of_formats()
    spec = load_model(DEMO_MODEL, Precision.FP32, "cpu").pixel_spec
    decoder = Decoder(max_pixels)
    worst = 0.0
    try:
        for data in _jpegs():
            worst = max(worst, _difference(decoder, data, spec))
    except ItemFailure as failure:
        yield problem(f"a good JPEG is rejected: {failure.error.detail}", _REMEDY)
        return
    if worst > _MOST_GREY_LEVELS:
        yield problem(
            f"the fast route is {counted(round(worst), 'grey level')} off the exact one: labels would differ",
            _REMEDY,
        )
    else:
        yield fine(
            f"the fast route is at most {counted(round(worst), 'grey level')} off the exact one (p99.9)"
        )


def _of_formats() -> Iterator[Finding]:
    missing = {name: what for name in ALLOWED_FORMATS if (what := missing_codec(name))}
    yield fine(f"images of these formats are read: {', '.join(sorted(set(ALLOWED_FORMATS) - set(missing)))}")
    for name, what in missing.items():
        if name == "HEIF":  # an extra
            yield fine(f"HEIF is not read: {what}")
        else:
            lack, _, remedy = what.partition("; ")
            yield warning(f"{name} is not read: {lack}", remedy)


def _of_memory_setting(setting: int) -> Iterator[Finding]:
    available = memory_limit(0)
    if setting > available:
        yield warning(
            f"CLIPFLEET_MAX_MEMORY_BYTES is {setting >> 20} MiB; only {available >> 20} MiB are available",
            "lower it: the kernel would kill the worker first",
        )


def _of_open_files(connections: int) -> Iterator[Finding]:
    needed = files_needed(connections)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # the worker raises the soft one itself
    if hard != resource.RLIM_INFINITY and hard < needed:
        yield warning(
            f"the limit of {hard} open files is below the {needed} that may be needed",
            "raise the limit (ulimit -Hn, LimitNOFILE=, ulimits:), or lower CLIPFLEET_TOTAL_CONNECTIONS",
        )


def _of_scratch() -> Iterator[Finding]:
    try:
        with tempfile.TemporaryFile() as file:
            file.write(b"probe")
    except OSError as error:
        yield problem(
            f"cannot create a temporary file: {error.strerror}",
            "mount a writable /tmp, or set TMPDIR: parts for S3 are written there first",
        )
    cache = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    nearest = next((path for path in (cache, *cache.parents) if os.access(path, os.F_OK)), Path("/"))
    if not (os.access(nearest, os.W_OK) and nearest.is_dir()):
        yield warning(
            f"{cache} is not writable: no model can be downloaded", "set HF_HOME to a writable folder"
        )


def _of_stores() -> Finding:
    if has_store_extra():
        return fine("jobs that fill a store are finished here")
    return fine(
        "jobs that fill a store (`clipfleet backfill`) are not finished here, only their chunks are run: "
        "pip install 'clipfleet[store]' on one worker at least"
    )


def _of_port(host: str, port: int) -> Finding:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, UnicodeError) as error:
            is_taken = isinstance(error, OSError) and error.errno in (errno.EADDRINUSE, errno.EACCES)
            return problem(
                f"cannot listen at {host}:{port} for /healthz: {getattr(error, 'strerror', None) or error}",
                "stop the program that listens there (another worker?), or set another CLIPFLEET_HEALTH_PORT"
                if is_taken
                else "set CLIPFLEET_HEALTH_HOST to an address of this machine: 127.0.0.1, or 0.0.0.0 for all",
            )
    return fine(f"{host}:{port} is free for /healthz")


def _jpegs() -> Iterator[bytes]:
    """Samples of the package as JPEGs of the sizes of photographs."""
    folder = files("clipfleet_worker") / "samples"
    names = sorted(path.name for path in folder.iterdir() if path.name.endswith(".png"))
    for name, size in zip(names, _SIZES, strict=False):
        with (folder / name).open("rb") as file, Image.open(file) as sample:
            image = sample.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        data = io.BytesIO()
        image.save(data, "JPEG", quality=90)
        yield data.getvalue()


def _difference(decoder: Decoder, data: bytes, spec: PixelSpec) -> float:
    fast, exact = (
        decoder.decode(data, spec, route).pixels.astype(int)
        for route in (DecodeRoute.FAST, DecodeRoute.EXACT)
    )
    return float(np.quantile(np.abs(fast - exact), 0.999))
