"""Reads a stranger's torch file in a process of its own, and writes its tensors as safetensors.

`weights_only` runs no code; limits bound what the file can make torch allocate. Nothing but tensors passes.
"""

from __future__ import annotations

import math
import pickle
import re
import resource
import struct
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from clipfleet.errors import UsageError
from clipfleet.heads.files import MAX_HEAD_BYTES
from clipfleet.heads.foreign import BARE, MAX_TENSORS

_CPU_SECONDS = 60
_MEMORY_BYTES = 1 << 30  # beyond torch itself: a few copies of the largest file
_MAX_NUMBERS = MAX_HEAD_BYTES // 4
_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MAX_NAME = 200
_MOST_WORDS = 160  # characters of a message of torch
_HOLDS = re.compile(r"(?:GLOBAL|class) ([\w.]+)")

# What torch raises of a damaged or hostile file.
_DAMAGED = (
    pickle.UnpicklingError, RuntimeError, OSError, EOFError, LookupError, ValueError, TypeError,
    AttributeError, ArithmeticError, AssertionError, ImportError, MemoryError, struct.error,
)  # fmt: skip


def convert_weights(given: Path, made: Path) -> None:
    """Write the tensors of a torch file as float32. Limits the memory and CPU time of this process for good.

    Raises:
        UsageError: the file holds anything else, or more than a head may have.
    """
    _require_plain_zip(given)
    torch.set_num_threads(1)
    _limit()
    try:
        loaded = torch.load(given, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        raise UsageError(f"{given}: {_problem(error)}") from None
    tensors = _tensors(loaded, str(given))
    save_file({name: _plain(one) for name, one in tensors.items()}, made)


def _require_plain_zip(given: Path) -> None:
    """Refuse a zip whose content is larger than its file; torch never compresses."""
    if not zipfile.is_zipfile(given):
        return  # torch's format before 1.6, or none
    try:
        with zipfile.ZipFile(given) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, *_DAMAGED):
        raise UsageError(f"{given}: is a damaged zip") from None
    if any("/code/" in one.filename for one in entries):
        raise UsageError(f"{given}: is TorchScript, which is code: it is refused; save `model.state_dict()`")
    if any(one.compress_type != zipfile.ZIP_STORED for one in entries):
        raise UsageError(f"{given}: is a compressed zip, which torch never writes")
    if sum(one.file_size for one in entries) > MAX_HEAD_BYTES:
        raise UsageError(f"{given}: holds more than {MAX_HEAD_BYTES >> 20} MiB, more than a head may have")


def _limit() -> None:
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_CPU: math.ceil(time.process_time()) + _CPU_SECONDS}
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limits[resource.RLIMIT_AS] = pages * resource.getpagesize() + _MEMORY_BYTES
    for kind, limit in limits.items():
        hard = resource.getrlimit(kind)[1]
        lower = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (lower, lower))


def _problem(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, MemoryError) or "alloc" in text:
        return "torch ran out of memory on it: its tensors are larger than a head may have"
    if isinstance(error, pickle.UnpicklingError) and (found := _HOLDS.search(text)):
        return (
            f"holds {found[1]}, which is no tensor and may run code: it is refused; of a model of yours, "
            "save `model.state_dict()`"
        )
    if isinstance(error, pickle.UnpicklingError):  # torch's own advice is to run the code
        text = text.partition("WeightsUnpickler error:")[2].partition("Check the documentation")[0]
    first = " ".join(text.split())[:_MOST_WORDS] or type(error).__name__
    return f"is not a file of tensors that torch reads: {first}"


def _tensors(loaded: Any, where: str) -> dict[str, torch.Tensor]:
    named = loaded if isinstance(loaded, Mapping) else {BARE: loaded}
    if len(named) > MAX_TENSORS:
        raise UsageError(f"{where}: has {len(named):,} tensors, more than a head may have")
    for name, one in named.items():
        if not isinstance(name, str) or len(name) > _MAX_NAME or name == "__metadata__":
            raise UsageError(f"{where}: a name of a tensor is {str(name)[:40]!r}")
        which = f"{name} is" if named is loaded else "it holds"
        if type(one) not in (torch.Tensor, torch.nn.Parameter):
            raise UsageError(f"{where}: {which} a {type(one).__name__}, not a tensor; save the tensors alone")
        if one.layout != torch.strided or one.device.type != "cpu" or one.dtype not in _TYPES:
            raise UsageError(f"{where}: {which} a tensor of {one.dtype}, {one.layout}, {one.device}; plain "
                             "floating point numbers are read")  # fmt: skip
    # Strides of 0 make a tensor of any size from one number.
    if sum(one.numel() for one in named.values()) > _MAX_NUMBERS:
        raise UsageError(f"{where}: has more than {_MAX_NUMBERS:,} numbers, more than a head may have")
    return dict(named)


def _plain(one: torch.Tensor) -> torch.Tensor:
    return one.detach().to(torch.float32).contiguous().clone()
