"""Local scratch files, and the mapping of file system errors to output errors."""

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
    """Create a scratch file, valid inside the context and in this process only.

    Raises:
        OutputUnavailableError: the disk for temporary files is full.
        OutputUnreachableError: the folder for temporary files is unusable.
    """
    with output_errors(_temporary_folder()):
        file = tempfile.TemporaryFile()  # noqa: SIM115 - errors inside the context are not the folder's
    with file:
        path = OPEN_FILES / str(file.fileno())
        if path.exists():
            yield path  # unlinked already, so a killed process leaves nothing
            return
    with output_errors(_temporary_folder()):
        folder = tempfile.TemporaryDirectory(prefix="clipfleet-", ignore_cleanup_errors=True)
    with folder as name:
        yield Path(name) / "scratch"


def _temporary_folder() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except OSError as error:  # of a container whose file system is read-only
        raise OutputUnreachableError(
            f"{error.strerror}: an output in S3 needs one; mount one at /tmp, or set TMPDIR"
        ) from error


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an OSError into the output error that says whether waiting helps."""
    try:
        yield
    except OSError as error:
        kind = OutputUnreachableError if error.errno in _UNREACHABLE else OutputUnavailableError
        raise kind(f"{path}: {error.strerror or error}") from error
