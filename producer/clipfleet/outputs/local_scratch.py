"""Scratch files on the machine's own disk, for outputs elsewhere: gone with the process, however it ends."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipfleet.outputs.folder import output_errors

_OPEN_FILES = Path("/proc/self/fd")


@contextmanager
def local_scratch() -> Iterator[Path]:
    """A path that can be written to and read, inside the context and by this process only.

    Raises:
        OutputUnavailableError: the disk for temporary files is full.
        OutputUnreachableError: it cannot be used.
    """
    with output_errors(Path(tempfile.gettempdir())):
        file = tempfile.TemporaryFile()  # noqa: SIM115 - errors of its user are not the folder's
    with file:
        path = _OPEN_FILES / str(file.fileno())
        if path.exists():
            yield path  # the file has no other name, so that nothing of a killed process stays
            return
    with output_errors(Path(tempfile.gettempdir())):
        folder = tempfile.TemporaryDirectory(prefix="clipfleet-", ignore_cleanup_errors=True)
    with folder as name:
        yield Path(name) / "scratch"
