"""Arrays in the user's cache folder that would otherwise be computed at every start.

Only the user may write to the folder: OpenVINO trusts what it imports. Failures to write or read cost time
only.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from zlib import crc32

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from clipfleet.contract.label_sets import short_hash

log = logging.getLogger(__name__)

_CHECKSUM = "crc32"  # an array of one number, beside the others
_SCRATCH_SECONDS = 3600  # writing takes seconds: the process of an older scratch folder has died


def cache_folder() -> Path:
    """Below the user's own cache; for a user without a home a path that cannot be created."""
    home = os.environ.get("HOME") or "/nonexistent"
    return Path(os.environ.get("XDG_CACHE_HOME") or f"{home}/.cache") / "clipfleet"


def recall(kind: str, key: Sequence[str]) -> Mapping[str, np.ndarray]:
    """The kept arrays by name; empty if there are none, or they cannot be read or are damaged."""
    file = kept_file(kind, key)
    try:
        _require_private(file.parent)
        os.utime(file)  # the least recently used are removed first
        found = load_file(file)
    except (OSError, SafetensorError):
        return {}
    checksum = found.pop(_CHECKSUM, np.array([]))
    return found if np.array_equal(checksum, _checksum(found)) else {}


def forget(kind: str, key: Sequence[str]) -> bool:
    """Remove kept arrays; returns whether they are gone."""
    try:
        kept_file(kind, key).unlink(missing_ok=True)
    except OSError:
        return False
    return True


def keep(kind: str, key: Sequence[str], arrays: Mapping[str, np.ndarray], *, most: int = 64) -> None:
    """Keep arrays under a key that covers everything they depend on.

    At most `most` of a kind are kept; the least recently used are removed.
    """
    file = kept_file(kind, key)
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_private(file.parent)
        _remove_left_scratch(file.parent)
        with tempfile.TemporaryDirectory(dir=file.parent, ignore_cleanup_errors=True) as scratch:
            save_file({**arrays, _CHECKSUM: _checksum(arrays)}, Path(scratch, "new"))
            Path(scratch, "new").replace(file)
        by_use = sorted(file.parent.glob(f"{kind}-*"), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in by_use[most:]:
            old.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        log.info("cannot keep arrays in %s: %s", file.parent, error, extra={"action": "cache_unusable"})


def kept_file(kind: str, key: Sequence[str]) -> Path:
    """Path of the arrays of a key, present or not."""
    return cache_folder() / f"{kind}-{short_hash(list(key))}.safetensors"


def _remove_left_scratch(folder: Path) -> None:
    for scratch in folder.glob("tmp*"):
        with suppress(FileNotFoundError):  # its process has just removed it
            if time.time() - scratch.stat().st_mtime > _SCRATCH_SECONDS:
                shutil.rmtree(scratch, ignore_errors=True)


def _checksum(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    found = 0
    for name, values in sorted(arrays.items()):
        found = crc32(f"{name} {values.dtype} {values.shape}".encode(), found)
        found = crc32(np.ascontiguousarray(values).data, found)
    return np.array([found])


def _require_private(folder: Path) -> None:
    found = folder.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022 or folder.is_symlink():
        _warn_of(folder)
        raise PermissionError(f"other users may write to {folder}")


@cache
def _warn_of(folder: Path) -> None:
    log.warning(
        "nothing is kept for later starts: others may write to %s too (mount a volume at %s)",
        folder, folder.parent, extra={"action": "cache_not_private"},
    )  # fmt: skip
