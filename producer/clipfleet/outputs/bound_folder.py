"""An output folder that is confined to the roots a worker may write to."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from clipfleet.errors import OutputRefusedError, OutputUnreachableError
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet.outputs.scratch import OPEN_FILES


class BoundFolderOutput(FolderOutput):
    """An output folder confined to some roots, safe against symbolic links and races on them.

    For programs that write to paths given by others. The folder of an object is pinned (`O_PATH`), its real
    path is read from the kernel and checked, and then it is used through the pin, so that a link swapped in
    between has no effect. Files to read are pinned themselves. Hard links count as files of the folder. Needs
    Linux and /proc.

    The roots must be resolved. Creates no folder but those for scratch files, parts and decisions, and none
    where a mount is missing: `_clipfleet` must be there.
    """

    def __init__(self, folder: Path, roots: Iterable[Path]) -> None:
        super().__init__(folder)
        self._roots = tuple(roots)

    @contextmanager
    def _holder(self, name: str) -> Iterator[Path]:
        with self._pinned((self._folder / name).parent, os.O_DIRECTORY) as (pin, _):
            yield OPEN_FILES / str(pin)

    @contextmanager
    def _found(self, name: str) -> Iterator[Path]:
        with self._pinned(self._folder / name, 0) as (pin, status):
            if not stat.S_ISREG(status.st_mode):
                raise OutputUnreachableError(f"{self._folder / name}: not a regular file")
            yield OPEN_FILES / str(pin)

    def _make_folder(self, name: str) -> None:
        path = Path(name)
        above = () if path.parts[0] == objects.INTERNAL else reversed(path.parents[:-1])
        for one in (*above, path):
            with self._holder(str(one)) as folder:
                (folder / one.name).mkdir(exist_ok=True)

    @contextmanager
    def _pinned(self, path: Path, flags: int) -> Iterator[tuple[int, os.stat_result]]:
        pin = os.open(path, os.O_PATH | os.O_CLOEXEC | flags)
        try:
            found = (OPEN_FILES / str(pin)).readlink()
            if not any(found.is_relative_to(root) for root in self._roots):
                raise outside_the_roots(path)
            yield pin, os.fstat(pin)
        finally:
            os.close(pin)


def outside_the_roots(path: str | Path) -> OutputRefusedError:
    """The error for a path that a worker must not write to. It names no root: any producer may read it."""
    return OutputRefusedError(
        f"{path} is outside this worker's output roots; start the worker with a folder above it: "
        "`clipfleet-worker up --root FOLDER`, or CLIPFLEET_OUTPUT_ROOTS (of the worker, not of this shell)"
    )


def require_below(folder: Path, roots: Iterable[Path], refusal: OutputRefusedError) -> None:
    """Refuse a folder that a library opens by its path, if it, or a link in it, leads out of the roots.

    A link that is made later is not seen.
    """
    allowed = tuple(roots)
    for path in (folder, *(one for one in folder.rglob("*") if one.is_symlink())):
        if not any(path.resolve().is_relative_to(root) for root in allowed):
            raise refusal
