"""Weights of other programs, as arrays by name. No code of a file is run.

Files of `torch.save` are read by torch in a child process of the worker package, whose memory and time are
limited; `.safetensors` and `.npy` are read here. Needs numpy.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from tokenize import TokenError

import numpy as np
from safetensors import SafetensorError

from clipfleet.errors import UsageError
from clipfleet.heads.files import Tensor, file_content, tensors_of

Array = np.ndarray

BARE = "tensor"  # stands for the name of a tensor that has none
MAX_TENSORS = 64  # twice those of the deepest head

_NPY, _ZIP, _PICKLE, _LFS = b"\x93NUMPY", b"PK\x03\x04", b"\x80", b"version https://git-lfs"
_TYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
_CHILD_SECONDS = 300.0  # nearly all of it for a slow import of torch
_GIVEN, _MADE = "given", "made"


def read_weights(path: Path) -> dict[str, Array]:
    """Read the tensors of a file: `.safetensors`, `.npy`, or what `torch.save` wrote of tensors.

    Returns:
        Arrays of floating point numbers by name; that of the only tensor of a file without names is `BARE`.

    Raises:
        UsageError: it cannot be read, is too large, or holds anything but tensors.
    """
    data, where = file_content(path), str(path)
    if data.startswith(_NPY):
        return {BARE: _npy(data, where)}
    # Before the pickles: the length of its header may begin with the same byte.
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data):
        return _safetensors(data, where)
    if data.startswith((_ZIP, _PICKLE)):
        return _by_torch(data, where)
    if data.startswith(_LFS):
        raise UsageError(f"{where}: is a pointer of Git LFS, not the weights; download the file itself")
    raise UsageError(f"{where}: is not .safetensors, .npy or a file of torch")


def _npy(data: bytes, where: str) -> Array:
    """An array whose size is known before anything of this size is made."""
    file = BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise UsageError(f"{where}: .npy version {version[0]}.{version[1]} is not for plain numbers")
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, is_fortran, dtype = read(file)
    except (ValueError, TypeError, SyntaxError, TokenError, RecursionError, MemoryError):
        raise UsageError(f"{where}: its .npy header is damaged") from None
    if dtype.str[1:] not in ("f2", "f4", "f8"):
        raise UsageError(f"{where}: holds {dtype}: a head has numbers of type float16, float32 or float64")
    there, expected = len(data) - file.tell(), math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or expected != there:
        raise UsageError(f"{where}: says that its shape is {list(shape)}, but has {there:,} bytes of numbers")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape, order="F" if is_fortran else "C")


def _safetensors(data: bytes, where: str) -> dict[str, Array]:
    try:
        tensors = tensors_of(data)
    except (SafetensorError, KeyError, TypeError, ValueError):
        raise UsageError(f"{where}: not a complete safetensors file") from None
    if len(tensors) > MAX_TENSORS:
        raise UsageError(f"{where}: has {len(tensors):,} tensors, more than a head may have")
    return {name: _array(one, name, where) for name, one in tensors.items()}


def _array(one: Tensor, name: str, where: str) -> Array:
    if one.dtype == "BF16":
        wide = np.frombuffer(one.data, "<u2").astype("<u4") << 16
        return wide.view("<f4").reshape(one.shape)
    if one.dtype not in _TYPES:
        raise UsageError(f"{where}: {name} is {one.dtype}: a head has numbers of type F16, BF16, F32 or F64")
    return np.frombuffer(one.data, _TYPES[one.dtype]).reshape(one.shape)


def _by_torch(data: bytes, where: str) -> dict[str, Array]:
    """Have a child read a copy, so that what was measured is what is read."""
    if find_spec("torch") is None or find_spec("clipfleet_worker") is None:
        raise UsageError(
            f"{where}: files of torch need the worker package, which reads them: "
            "pip install 'clipfleet[worker]'"
        )
    with TemporaryDirectory(prefix="clipfleet-weights-") as folder:
        (Path(folder) / _GIVEN).write_bytes(data)
        problem = _child_problem(folder)
        if problem is not None:
            raise UsageError(f"{where}: {problem}")
        return _safetensors(file_content(Path(folder) / _MADE), where)


def _child_problem(folder: str) -> str | None:
    """Why the child could not read the file; None if it did."""
    # -P: modules are not looked for in the current folder.
    line = [sys.executable, "-P", "-m", "clipfleet_worker", "weights", _GIVEN, _MADE]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command of our own
            line, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, timeout=_CHILD_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"torch has not read it within {_CHILD_SECONDS:.0f} seconds"
    if done.returncode == 0:
        return None
    said = done.stderr.decode(errors="replace").splitlines()
    errors = [line for line in said if line.startswith("error: ")]
    if done.returncode == 2 and errors:
        return re.sub(rf"^error: ({_GIVEN}: )?", "", errors[-1])
    last = f": {said[-1]}" if said else ""
    return f"torch could not read it (exit code {done.returncode}){last}"
