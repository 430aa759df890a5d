"""The file of a head: safetensors, with what it is in one JSON entry of the metadata. Runs no code of a file.

Needs no numpy: a submit checks the file of a head that workers will run.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader, FileIO
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError
from safetensors import SafetensorError, deserialize

from clipfleet.contract.heads import MAX_WIDTH, Head, JobHead
from clipfleet.errors import UsageError, first_problem

if TYPE_CHECKING:
    import numpy as np

SUFFIX = ".head.safetensors"
METADATA_KEY = "clipfleet.head"
MAX_HEAD_BYTES = 64 << 20

_NUMBERS = {"F16": pa.float16(), "F32": pa.float32(), "F64": pa.float64()}
MEAN, STD = "input.mean", "input.std"  # optional, together: `(x - mean) / std` comes before the first layer
_SCALING = (MEAN, STD)
_LARGEST_SINGLE = (2 - 2.0**-23) * 2.0**127
_AT_ONCE = 1 << 20  # numbers in double precision


@dataclass(frozen=True, slots=True)
class Tensor:
    """The numbers of a head, as its file holds them."""

    dtype: str  # F16, F32 or F64
    shape: tuple[int, ...]
    data: bytes  # little-endian, row by row


@dataclass(frozen=True, slots=True)
class HeadFile:
    """A checked head: every shape fits the next, and every number and score is finite."""

    head: Head
    data: bytes  # the whole file

    @property
    def of_job(self) -> JobHead:
        """What a job carries of it, see `JobHead`."""
        training = self.head.training.model_copy(update={"classes": {}, "cv": {}})
        head = self.head.model_copy(update={"training": training})
        return JobHead(sha256=hashlib.sha256(self.data).hexdigest(), head=head)

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, see `Head.tensor_names`; `MEAN` and `STD` if there are any."""
        return tensors_of(self.data)

    def arrays(self) -> dict[str, np.ndarray]:
        """The same as arrays, with the types of the file."""
        from safetensors.numpy import load

        return load(self.data)


def read_head(path: Path) -> HeadFile:
    """Read and check the file of a head.

    Raises:
        UsageError: it cannot be read, is no head, or has shapes or numbers that no head has.
    """
    return parse_head(file_content(path), str(path))


def file_content(path: Path) -> bytes:
    """Read a file of at most `MAX_HEAD_BYTES`; never waits for a pipe.

    Raises:
        UsageError: it cannot be read, is larger, or is a folder, a pipe or a device.
    """
    try:
        with BufferedReader(FileIO(path, opener=_without_waiting)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UsageError(f"{path}: is a pipe or a device; give a file")
            data = file.read(MAX_HEAD_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    if len(data) > MAX_HEAD_BYTES:
        raise UsageError(f"{path}: larger than {MAX_HEAD_BYTES >> 20} MiB, more than a head may have")
    return data


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOCTTY | os.O_NONBLOCK)


def parse_head(data: bytes, where: str) -> HeadFile:
    """Check the content of the file of a head; `where` names it in errors.

    Raises:
        UsageError: see `read_head`.
    """
    if len(data) > MAX_HEAD_BYTES:
        raise UsageError(f"{where}: larger than {MAX_HEAD_BYTES >> 20} MiB, more than a head may have")
    try:
        tensors = tensors_of(data)
    except (SafetensorError, KeyError, TypeError, ValueError):
        raise UsageError(
            f"{where}: not a safetensors file; `clipfleet head import` reads heads of other programs"
        ) from None
    entry = _entry(data)
    if entry is None:
        raise UsageError(
            f"{where}: has no entry {METADATA_KEY!r}: `clipfleet head import` makes a head from the weights "
            "of another program"
        )
    try:
        head = Head.model_validate_json(entry)
    except ValidationError as error:
        raise UsageError(f"{where}: not a head that this version can read: {first_problem(error)}") from None
    _check(head, tensors, where)
    return HeadFile(head, data)


def make_head(head: Head, tensors: Mapping[str, np.ndarray], where: str = "the head") -> HeadFile:
    """Make the file of a head; the numbers become float32. The same head and tensors give the same bytes.

    Raises:
        UsageError: shapes or numbers do not fit.
    """
    import numpy as np
    from safetensors.numpy import save

    single = {name: np.ascontiguousarray(one, dtype="<f4") for name, one in sorted(tensors.items())}
    return parse_head(save(single, {METADATA_KEY: head.model_dump_json()}), where)


def write_head(made: HeadFile, path: Path) -> None:
    """Write the file of a head, over an older one; it is never there in half.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            scratch = Path(file.name)
            try:
                file.write(made.data)
                file.flush()
                scratch.chmod(0o644)
                scratch.replace(path)
            except OSError:
                scratch.unlink()
                raise
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def tensors_of(data: bytes) -> dict[str, Tensor]:
    """The tensors of the content of any safetensors file.

    Raises:
        SafetensorError: it is none; or `KeyError`, `TypeError`, `ValueError`.
    """
    return {
        name: Tensor(str(one["dtype"]), tuple(one["shape"]), bytes(one["data"]))
        for name, one in deserialize(data)  # type: ignore[no-untyped-call]
    }


def _entry(data: bytes) -> str | None:
    """The entry of the metadata; safetensors itself reads them from paths only."""
    length = int.from_bytes(data[:8], "little")
    metadata: Mapping[str, Any] = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    return metadata.get(METADATA_KEY)


def _check(head: Head, tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise `UsageError` unless the tensors are those of the head."""
    wanted = {name for pair in head.tensor_names for name in pair}
    if any(name in tensors for name in _SCALING):
        wanted.update(_SCALING)
    missing, strange = sorted(wanted.difference(tensors)), sorted(set(tensors).difference(wanted))
    if missing or strange:
        problem = f"has no tensor {missing[0]!r}" if missing else f"has a tensor {strange[0]!r} too many"
        raise UsageError(f"{where}: {problem}: its {len(head.activations)} layers have {_some(wanted)}")
    width = head.input.dim
    for name in _SCALING:
        if name in tensors:
            _check_shape(tensors[name], (width,), name, where)
    for weight, bias in head.tensor_names:
        shape = tensors[weight].shape
        outputs = shape[0] if len(shape) == 2 and 1 <= shape[0] <= MAX_WIDTH else 0
        _check_shape(tensors[weight], (outputs or 1, width), weight, where)
        _check_shape(tensors[bias], (outputs,), bias, where)
        width = outputs
    if width != len(head.labels):
        raise UsageError(f"{where}: the last layer has {width} outputs for {len(head.labels)} labels")
    for name, one in tensors.items():
        _check_numbers(one, name, where)
    _check_scores(head, tensors, where)


def _check_shape(one: Tensor, shape: Sequence[int], name: str, where: str) -> None:
    if one.shape != tuple(shape):
        raise UsageError(f"{where}: {name} has the shape {list(one.shape)}, {list(shape)} fits")


def _check_numbers(one: Tensor, name: str, where: str) -> None:
    if one.dtype not in _NUMBERS:
        raise UsageError(f"{where}: {name} is {one.dtype}: a head has numbers of type F16, F32 or F64")
    values = _singles(one)
    if not pc.all(pc.is_finite(values), min_count=0).as_py():
        raise UsageError(
            f"{where}: {name} holds a number that is not finite (NaN, infinite, or too large for float32)"
        )
    if name == STD and not pc.all(pc.greater(values, 0), min_count=0).as_py():
        raise UsageError(f"{where}: {name} must be above 0 in float32: it divides")


def _check_scores(head: Head, tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse a head that may score a vector of length 1 beyond float32.

    The bound is an upper one: a layer makes of a vector of length l one of at most |weight| l + |bias|, and a
    ReLU makes none longer.
    """
    most = 1.0
    if MEAN in tensors:
        most = (most + _length(tensors[MEAN])) / pc.min(_singles(tensors[STD])).as_py()
    for weight, bias in head.tensor_names:
        most = most * _length(tensors[weight]) + _length(tensors[bias])
    if not most <= _LARGEST_SINGLE:  # of infinity times 0, too
        raise UsageError(f"{where}: its numbers are so large that a score may not be finite in float32")


def _singles(one: Tensor) -> pa.Array:
    """Its numbers in float32."""
    kind = _NUMBERS[one.dtype]
    count = len(one.data) // kind.byte_width
    return pa.Array.from_buffers(kind, count, [None, pa.py_buffer(one.data)]).cast(pa.float32())


def _length(one: Tensor) -> float:
    """The root of the sum of the squares of its numbers."""
    values, total = _singles(one), 0.0
    for start in range(0, len(values), _AT_ONCE):
        part = values.slice(start, _AT_ONCE).cast(pa.float64())
        total += pc.sum(pc.multiply(part, part)).as_py()
    return math.sqrt(total)


def _some(names: set[str]) -> str:
    shown = sorted(names)[:4]
    return ", ".join(shown) + (", ..." if len(names) > len(shown) else "")
