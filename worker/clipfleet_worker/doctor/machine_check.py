"""What this machine or container gives a worker, and variables that look like settings and are none."""

from __future__ import annotations

import errno
import os
import resource
import socket
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from clipfleet.settings import doubtful_variables
from clipfleet_worker.control_groups import processors
from clipfleet_worker.doctor import Finding, fine, problem, warning
from clipfleet_worker.memory_guard import memory_limit
from clipfleet_worker.open_files import files_needed
from clipfleet_worker.settings import WorkerSettings

_MOST_THREADS_PER_PROCESSOR = 4
_LITTLE_BYTES = 2 << 30  # Python, torch and a model of 600 MB, and pictures


@dataclass(frozen=True, slots=True)
class SettingsCheck:
    """See `Check`. Variables that look like settings and are none."""

    environment: Mapping[str, str]
    name: str = "settings"
    limit_seconds: float = 5.0

    def findings(self) -> Iterator[Finding]:
        doubtful = list(doubtful_variables(WorkerSettings, self.environment, has_all=True))
        for variable, meant in doubtful:
            yield warning(f"{variable} is no setting", f"did you mean {meant}?" if meant else "remove it")
        if not doubtful:
            yield fine("every CLIPFLEET_ variable is a setting")


@dataclass(frozen=True, slots=True)
class MachineCheck:
    """See `Check`, and the module."""

    settings: WorkerSettings
    name: str = "machine"
    limit_seconds: float = 20.0

    def findings(self) -> Iterator[Finding]:
        limit = memory_limit(self.settings.max_memory_bytes)
        yield fine(f"{processors()} processors, at most {limit / (1 << 30):.1f} GiB of memory for the worker")
        if limit < _LITTLE_BYTES:
            yield warning(
                f"{limit >> 20} MiB of memory are little for a model and its pictures",
                "give the container 2 GiB or more, or raise CLIPFLEET_MAX_MEMORY_BYTES",
            )
        yield from _of_memory_setting(self.settings.max_memory_bytes)
        if self.settings.decode_threads > _MOST_THREADS_PER_PROCESSOR * processors():
            yield warning(
                f"CLIPFLEET_DECODE_THREADS is {self.settings.decode_threads}, with {processors()} processors",
                "leave it out: one for each of them is right",
            )
        yield from _of_open_files(self.settings.total_connections)
        yield from _of_scratch()
        if self.settings.health_port:
            yield _of_port(self.settings.health_host, self.settings.health_port)


def _of_memory_setting(setting: int) -> Iterator[Finding]:
    there_is = memory_limit(0)
    if setting > there_is:
        yield warning(
            f"CLIPFLEET_MAX_MEMORY_BYTES is {setting >> 20} MiB, and there are {there_is >> 20} MiB",
            "lower it: the kernel would kill the worker first",
        )


def _of_open_files(connections: int) -> Iterator[Finding]:
    needed = files_needed(connections)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # the worker raises the soft one itself
    if hard != resource.RLIM_INFINITY and hard < needed:
        yield warning(
            f"{hard} files may be open, {needed} may be wanted",
            "raise the limit (ulimit -Hn, LimitNOFILE=, ulimits:), or lower CLIPFLEET_TOTAL_CONNECTIONS",
        )


def _of_scratch() -> Iterator[Finding]:
    try:
        with tempfile.TemporaryFile() as file:
            file.write(b"probe")
    except OSError as error:
        yield problem(
            f"no temporary file can be made: {error.strerror}",
            "mount a writable /tmp, or set TMPDIR: parts are put together there before they go to S3",
        )
    cache = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    nearest = next((path for path in (cache, *cache.parents) if os.access(path, os.F_OK)), Path("/"))
    if not (os.access(nearest, os.W_OK) and nearest.is_dir()):
        yield warning(
            f"{cache} cannot be written: no model can be downloaded", "set HF_HOME to a folder that can"
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
                f"{host}:{port} cannot be opened for /healthz: {getattr(error, 'strerror', None) or error}",
                "end what listens there (a worker that runs already?), or set another CLIPFLEET_HEALTH_PORT"
                if is_taken
                else "set CLIPFLEET_HEALTH_HOST to an address of this machine: 127.0.0.1, or 0.0.0.0 for all",
            )
    return fine(f"{host}:{port} is free for /healthz")
