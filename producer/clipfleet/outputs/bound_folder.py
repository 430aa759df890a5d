"""An output folder that is confined to the roots a worker may write to."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from clipfleet.errors import OutputUnreachableError
from clipfleet.ledger import keys
from clipfleet.outputs.folder import FolderOutput
from clipfleet.outputs.scratch import OPEN_FILES


class BoundFolderOutput(FolderOutput):
    """A folder that must not lead out of some roots, whatever links say and whoever changes them.

    For programs that write where others tell them to. The folder of an object is pinned (`O_PATH`), the
    kernel is asked where it really lies, and then it is used through the pin: a link that is swapped in
    between leads nowhere else. What is to be read is pinned itself. Hard links are files of the folder like
    any other. Needs Linux and /proc.

    The caller has resolved the roots. Makes no folder but the one for scratch files.
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
                raise OutputUnreachableError(f"{self._folder / name}: a folder, pipe or device, not a file")
            yield OPEN_FILES / str(pin)

    def _make_tmp(self) -> None:
        with self._holder(keys.TMP) as folder:
            (folder / Path(keys.TMP).name).mkdir(exist_ok=True)

    @contextmanager
    def _pinned(self, path: Path, flags: int) -> Iterator[tuple[int, os.stat_result]]:
        pin = os.open(path, os.O_PATH | os.O_CLOEXEC | flags)
        try:
            found = (OPEN_FILES / str(pin)).readlink()
            if not any(found.is_relative_to(root) for root in self._roots):
                raise OutputUnreachableError(
                    f"{path} is outside this worker's output roots: "
                    "add a folder above it to CLIPFLEET_OUTPUT_ROOTS"
                )
            yield pin, os.fstat(pin)
        finally:
            os.close(pin)
