"""Arrays in the user's cache folder: what would be computed again at every start. They are data only.

Nobody else may write to the folder: OpenVINO trusts what it imports. Whatever keeps arrays from being written
or read costs time, nothing else.
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
_SCRATCH_SECONDS = 3600  # writing takes seconds: whoever began such a scratch folder has died


def cache_folder() -> Path:
    """Below the user's own cache; a user without a home has one in no place that can be made."""
    home = os.environ.get("HOME") or "/nonexistent"
    return Path(os.environ.get("XDG_CACHE_HOME") or f"{home}/.cache") / "clipfleet"


def recall(kind: str, key: Sequence[str]) -> Mapping[str, np.ndarray]:
    """What was kept, by name; nothing where nothing was, or where it cannot be read or is damaged."""
    file = kept_file(kind, key)
    try:
        _require_private(file.parent)
        os.utime(file)  # those used last are kept
        found = load_file(file)
    except (OSError, SafetensorError):
        return {}
    checksum = found.pop(_CHECKSUM, np.array([]))
    return found if np.array_equal(checksum, _checksum(found)) else {}


def forget(kind: str, key: Sequence[str]) -> bool:
    """Remove what was kept; whether nothing is kept now."""
    try:
        kept_file(kind, key).unlink(missing_ok=True)
    except OSError:
        return False
    return True


def keep(kind: str, key: Sequence[str], arrays: Mapping[str, np.ndarray], *, most: int = 64) -> None:
    """Keep arrays under a key that says all that they depend on.

    Of this kind so many are kept; those that were used least lately give way.
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
        log.info("nothing is kept in %s: %s", file.parent, error, extra={"action": "cache_unusable"})


def kept_file(kind: str, key: Sequence[str]) -> Path:
    """Where arrays of this key are, or would be."""
    return cache_folder() / f"{kind}-{short_hash(list(key))}.safetensors"


def _remove_left_scratch(folder: Path) -> None:
    for scratch in folder.glob("tmp*"):
        with suppress(FileNotFoundError):  # another process is done with it
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
        raise PermissionError(f"others may write to {folder} too")


@cache
def _warn_of(folder: Path) -> None:
    log.warning(
        "nothing is kept for later starts: others may write to %s too (mount a volume at %s)",
        folder, folder.parent, extra={"action": "cache_not_private"},
    )  # fmt: skip
