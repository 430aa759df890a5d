"""An output in a folder of a local or shared file system.

A file becomes visible by a hard link from a finished temporary file: whole, and only if the name was free.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from clipfleet import keys
from clipfleet.errors import OutputUnavailableError, OutputUnreachableError

_UNREACHABLE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
)
_NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})


class FolderOutput:
    """See `clipfleet.outputs.Output`. The folder is made by the first write."""

    def __init__(self, folder: Path) -> None:
        # Not resolve(): a symbolic link in the path may point elsewhere on another machine.
        self._folder = folder.expanduser().absolute()

    @property
    def uri(self) -> str:
        """Absolute path of the folder."""
        return str(self._folder)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A path below `_clipfleet/tmp/`, on the same file system as the parts."""
        folder = self._folder / keys.TMP
        with _translated(folder):
            folder.mkdir(parents=True, exist_ok=True)
        path = folder / uuid.uuid4().hex
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def publish(self, scratch: Path, name: str, *, replace: bool = False) -> bool:
        """Sync the file, then give it its name."""
        target = self._folder / name
        with _translated(target):
            with scratch.open("rb+") as file:
                os.fsync(file.fileno())
            if replace:
                scratch.replace(target)
            elif not _link_if_absent(scratch, target):
                return False
            _sync_folder(target.parent)
        return True

    def create(self, name: str, data: bytes) -> bool:
        """See the protocol."""
        return self._write(name, data, replace=False)

    def replace(self, name: str, data: bytes) -> None:
        """See the protocol."""
        self._write(name, data, replace=True)

    def _write(self, name: str, data: bytes, *, replace: bool) -> bool:
        with self.scratch() as path:
            with _translated(path):
                path.write_bytes(data)
            return self.publish(path, name, replace=replace)

    def read(self, name: str) -> bytes | None:
        """See the protocol."""
        path = self._folder / name
        with _translated(path):
            try:
                return path.read_bytes()
            except FileNotFoundError:
                return None

    def open(self, name: str) -> pa.NativeFile:
        """See the protocol."""
        path = self._folder / name
        if not path.is_file():
            raise FileNotFoundError(path)
        with _translated(path):
            return pa.OSFile(str(path), "rb")

    def names(self, prefix: str) -> Iterator[str]:
        """See the protocol."""
        with _translated(self._folder):
            try:
                entries = [entry.name for entry in os.scandir(self._folder)]
            except FileNotFoundError:
                return
        yield from sorted(name for name in entries if name.startswith(prefix))

    def remove(self, name: str) -> None:
        """See the protocol."""
        path = self._folder / name
        with _translated(path):
            path.unlink(missing_ok=True)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turn an OSError into the exception that says whether waiting helps."""
    try:
        yield
    except OSError as error:
        kind = OutputUnreachableError if error.errno in _UNREACHABLE else OutputUnavailableError
        raise kind(f"{path}: {error.strerror or error}") from error


def _link_if_absent(source: Path, target: Path) -> bool:
    try:
        target.hardlink_to(source)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # A file system without hard links (some network shares): two writers of one chunk may then both
        # write, one after the other; each writes the whole part, so it is still one row per input.
        if target.exists():
            return False
        source.replace(target)
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)
