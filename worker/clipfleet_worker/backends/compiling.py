"""torch.compile for forward passes, and the folder where what it made is found again.

What it makes is code, so the folder must be its owner's alone. Compiling happens when a compiled function is
called first; what it raises then is the caller's.

What it relies on (torch 2.13; documented under "Compile Time Caching in torch.compile"): torch reads
`TORCHINDUCTOR_CACHE_DIR` when it compiles first, has Triton's files below it, and keeps whole graphs there.
`TORCH_COMPILE_DISABLE=1`, torch's own switch, turns all of it off.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from clipfleet_worker.backends.fixed_passes import Forward

log = logging.getLogger(__name__)

_MOST_SHAPES = 64  # compiled for, of all models of a process; torch stops at 8 by itself


class Compiler:
    """One per process."""

    def __init__(self, folder: Path) -> None:
        """Nothing is compiled yet.

        Args:
            folder: where compiled code is kept; made if need be.
        """
        self._folder = folder
        self._is_ready: bool | None = None

    def compiled(self, forward: Forward) -> Forward | None:
        """The same function, compiled for each shape that it is called with; None where that cannot be."""
        if self._is_ready is None:
            self._is_ready = self._set_up()
        if not self._is_ready:
            return None
        import torch

        compiled: Forward = torch.compile(forward, dynamic=False)
        return compiled

    def _set_up(self) -> bool:
        if importlib.util.find_spec("triton") is None:
            log.warning(
                "forward passes are not compiled, which costs speed only: triton is not installed",
                extra={"action": "pass_not_fast"},
            )
            return False
        try:
            folder = private_folder(self._folder)
        except OSError as error:
            log.warning(
                "forward passes are not compiled, which costs speed only: no folder for them: %s",
                error,
                extra={"action": "pass_not_fast"},
            )
            return False
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
        # In this process: its helpers would be left behind by a kill.
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
        _allow_shapes(_MOST_SHAPES)
        return True


def cache_folder() -> Path:
    """Below the user's own cache; a user without a home has one in no place that can be made."""
    home = os.environ.get("HOME") or "/nonexistent"
    base = os.environ.get("XDG_CACHE_HOME") or f"{home}/.cache"
    return Path(base) / "clipfleet" / "compiled"


def private_folder(folder: Path) -> Path:
    """This folder, if it is or can be made this user's alone; else a new one that nobody finds again.

    Raises:
        OSError: no folder can be made at all.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        if found.st_uid != os.getuid() or not folder.is_dir() or folder.is_symlink():
            raise PermissionError(f"{folder} is somebody else's, or no folder")
        folder.chmod(0o700)
    except OSError as error:
        log.warning(
            "compiled forward passes are forgotten at the end: %s", error, extra={"action": "cache_unusable"}
        )
        return Path(tempfile.mkdtemp(prefix="clipfleet-compiled-"))
    return folder


def _allow_shapes(number: int) -> None:
    """Each model and each batch size counts as a shape of the same function."""
    import torch._dynamo

    config: Any = torch._dynamo.config
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # before torch 2.7
    setattr(config, name, max(number, getattr(config, name)))
