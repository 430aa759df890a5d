"""How many worker processes this machine runs, on which devices, and the share of each.

The rule of `auto`:

- On the CPU one process: torch's threads use all cores, and each further process would hold another model.
- On a GPU one for every 4 cores per GPU: one interpreter cannot use many cores to feed a fast GPU. At most 8,
  and each has 8 GiB of the GPU's memory and 8 GiB of the machine's.

Cores and memory are divided evenly among all processes; settings of the user apply to each, undivided.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clipfleet.errors import UsageError, WorldError
from clipfleet_worker.process.device import HOW_TO_USE_THE_GPU

AUTO, ALL = "auto", "all"
MOST_PER_DEVICE = 64  # more is a typo
_CORES_PER_PROCESS = 4
_GPU_BYTES_PER_PROCESS = 8 << 30
_BYTES_PER_PROCESS = 8 << 30
_MOST_AUTO = 8
_ASK_SECONDS = 300.0  # to load torch from a cold disk, and the driver


@dataclass(frozen=True, slots=True)
class Machine:
    """The resources to divide."""

    gpus: tuple[int, ...]  # bytes of memory of each, `cuda:0` first
    cores: int  # that the workers may use
    memory_bytes: int  # limit of all workers together
    has_nvidia_gpu: bool = False  # by its driver, whatever torch sees


@dataclass(frozen=True, slots=True)
class WorkerShare:
    """One worker process and its share of the machine."""

    number: int  # from 0; its ports are the first ones plus this
    device: str  # cpu, cuda:0, ...
    name: str  # for logs: the device, and the number of the process where there are several
    cores: int
    memory_bytes: int


def plan_processes(devices: str, per_device: str, machine: Machine) -> list[WorkerShare]:
    """Plan the processes to run, device by device.

    Args:
        devices: `all` (every GPU), `auto` (the same, or the CPU where there is none), or names such as
            `cuda:0,cuda:1` or `cpu`.
        per_device: a number, or `auto`, see above.
        machine: its resources.

    Raises:
        UsageError: there is no such device, or the number is out of range.
    """
    named = _devices(devices, machine)
    counts = [_per_device(per_device, device, len(named), machine) for device in named]
    total = sum(counts)
    processes = [
        (device, f"{device}/{one}" if count > 1 else device)
        for device, count in zip(named, counts, strict=True)
        for one in range(count)
    ]
    cores, memory_bytes = max(1, machine.cores // total), max(1, machine.memory_bytes // total)
    return [
        WorkerShare(number, device, name, cores, memory_bytes)
        for number, (device, name) in enumerate(processes)
    ]


def share_settings(share: WorkerShare, total: int, given: Mapping[str, str]) -> dict[str, str]:
    """Environment variables that limit a process to its share, without those that the user has set.

    Args:
        share: of the process.
        total: number of processes.
        given: the user's environment.
    """
    settings = {"CLIPFLEET_DEVICE": share.device}
    if port := int(given.get("CLIPFLEET_HEALTH_PORT") or 0):
        settings["CLIPFLEET_HEALTH_PORT"] = str(port + share.number)
    if ready_file := given.get("CLIPFLEET_READY_FILE"):
        settings["CLIPFLEET_READY_FILE"] = f"{ready_file}.{share.number}"
    if total > 1:
        divided = {
            "CLIPFLEET_DECODE_THREADS": str(share.cores),
            "CLIPFLEET_MAX_MEMORY_BYTES": str(share.memory_bytes),
            "OMP_NUM_THREADS": str(share.cores),
        }
        settings |= {name: value for name, value in divided.items() if given.get(name, "") in ("", "0")}
    return settings


def _devices(text: str, machine: Machine) -> Sequence[str]:
    gpus = len(machine.gpus)
    if text in (ALL, AUTO):
        if not gpus and (text == ALL or machine.has_nvidia_gpu):
            raise UsageError(f"--devices: torch sees no GPU here; {HOW_TO_USE_THE_GPU}")
        return [f"cuda:{number}" for number in range(gpus)] or ["cpu"]
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError("--devices names no device; give all, cpu, or for example cuda:0,cuda:1")
    found = [_device(name, gpus) for name in names]
    twice = next((name for name in found if found.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"--devices names {twice} twice; use --processes-per-device")
    return found


def _device(name: str, gpus: int) -> str:
    if name == "cpu":
        return name
    match = re.fullmatch(r"cuda(?::([0-9]{1,4}))?", name)
    if match is None:
        raise UsageError(f"--devices: {name!r} is not a device; give all, cpu, or for example cuda:0,cuda:1")
    number = int(match[1] or 0)
    if number >= gpus:
        count = f"{gpus or 'no'} GPU{'s' if gpus > 1 else ''}"
        raise UsageError(f"--devices: {name} does not exist; torch sees {count} here")
    return f"cuda:{number}"


def _per_device(text: str, device: str, devices: int, machine: Machine) -> int:
    if text != AUTO:
        if text.isdecimal() and text.isascii() and 1 <= int(text) <= MOST_PER_DEVICE:
            return int(text)
        raise UsageError(
            f"--processes-per-device: {text!r} is neither auto nor a number from 1 to {MOST_PER_DEVICE}"
        )
    if device == "cpu":
        return 1
    bounds = (
        machine.cores // devices // _CORES_PER_PROCESS,
        machine.memory_bytes // devices // _BYTES_PER_PROCESS,
        machine.gpus[int(device.removeprefix("cuda:"))] // _GPU_BYTES_PER_PROCESS,
        _MOST_AUTO,
    )
    return max(1, min(bounds))


def find_gpus() -> tuple[int, ...]:
    """Bytes of memory of each GPU, `cuda:0` first; `CUDA_VISIBLE_DEVICES` applies.

    torch runs in another process, so that the parent of the workers neither loads it nor holds a device.

    Raises:
        WorldError: torch does not answer.
    """
    command = [sys.executable, "-P", "-m", "clipfleet_worker.machine.plan"]
    try:
        asked = subprocess.run(  # noqa: S603 - our own
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ASK_SECONDS,
            check=False,
        )
        return tuple(map(int, json.loads(asked.stdout)))
    except subprocess.TimeoutExpired:
        raise WorldError(f"torch did not list the GPUs within {_ASK_SECONDS:g} s") from None
    except ValueError:
        last_line = (asked.stderr.strip().splitlines() or ["nothing"])[-1][:200]
        raise WorldError(f"torch cannot list the GPUs: {last_line}") from None


def _memory_of_each() -> list[int]:
    import torch

    return [torch.cuda.get_device_properties(n).total_memory for n in range(torch.cuda.device_count())]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_memory_of_each()))
