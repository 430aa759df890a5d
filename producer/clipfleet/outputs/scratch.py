"""Scratch files of this machine, and what an error of the file system means for an output."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipfleet.errors import OutputUnavailableError, OutputUnreachableError

OPEN_FILES = Path("/proc/self/fd")
_UNREACHABLE = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EEXIST,
        errno.ELOOP,
        errno.ENAMETOOLONG,
    }
)


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
        path = OPEN_FILES / str(file.fileno())
        if path.exists():
            yield path  # the file has no other name, so that nothing of a killed process stays
            return
    with output_errors(Path(tempfile.gettempdir())):
        folder = tempfile.TemporaryDirectory(prefix="clipfleet-", ignore_cleanup_errors=True)
    with folder as name:
        yield Path(name) / "scratch"


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an OSError about a file of an output into the exception that says whether waiting helps."""
    try:
        yield
    except OSError as error:
        kind = OutputUnreachableError if error.errno in _UNREACHABLE else OutputUnavailableError
        raise kind(f"{path}: {error.strerror or error}") from error
