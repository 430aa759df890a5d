"""Models that OpenVINO has compiled, on disk: the next start reads them and need not convert torch's module.

The folder is this user's alone, since OpenVINO trusts what it imports. What cannot be kept or read costs
time, nothing else.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

log = logging.getLogger(__name__)

_KEPT_FILES = 4  # one of ViT-B-32 in bf16 has 0.6 GB


@dataclass(frozen=True, slots=True)
class CompiledModels:
    """Arrays by name, a file for each model; several processes may use the folder, which need not exist."""

    folder: Path

    def find(self, key: str) -> Mapping[str, np.ndarray]:
        """What was kept under this key; nothing where it cannot be read."""
        path = self._file(key)
        try:
            self._require_private()
            os.utime(path)  # those used last are kept
            return load_file(path)
        except (OSError, SafetensorError):
            return {}

    def keep(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write them for later starts; those that were used least lately give way."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._require_private()
            with tempfile.TemporaryDirectory(dir=self.folder, ignore_cleanup_errors=True) as scratch:
                save_file(dict(arrays), Path(scratch, "new"))
                Path(scratch, "new").replace(self._file(key))
            by_use = sorted(
                self.folder.glob(self._file("*").name), key=lambda path: path.stat().st_mtime, reverse=True
            )
            for old in by_use[_KEPT_FILES:]:
                old.unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:
            log.info("this model is not kept: %s", error, extra={"action": "compiled_model_not_kept"})

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _require_private(self) -> None:
        found = self.folder.lstat()
        if found.st_uid != os.getuid() or found.st_mode & 0o077 or self.folder.is_symlink():
            raise PermissionError(f"{self.folder} is not this user's alone")


def default_folder() -> Path:
    """Below the user's own cache."""
    home = os.environ.get("HOME") or "/nonexistent"
    return Path(os.environ.get("XDG_CACHE_HOME") or f"{home}/.cache") / "clipfleet" / "openvino"
