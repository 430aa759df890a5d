"""Reads files below the folders of `CLIPFLEET_FILE_ROOTS`, and nothing else on the machine.

The check applies to the opened file, not to the requested path. The file is pinned with `O_PATH` (which
neither reads, blocks nor wakes a device), `/proc/self/fd` gives its real path, and only then the pinned file
itself is opened for reading. Symbolic links, `..` and a link swapped in between cannot lead outside. Hard
links can: users who may create files below a root decide what is there. Needs Linux and /proc.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote_to_bytes

from clipfleet.contract.jobs import ErrorCode
from clipfleet.errors import UsageError
from clipfleet_worker.failures import ItemFailure, too_many_bytes
from clipfleet_worker.fetch import archive_member

_OPEN_FILES = "/proc/self/fd"
_FILE_URL = re.compile(r"file:(?://(?P<host>[^/]*)|(?!//))(?P<path>/.*)", re.IGNORECASE | re.DOTALL)
# Non-blocking guards against a file system that reports a regular file and then blocks like a pipe.
_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_READ_BYTES = 1 << 20

_CODES = {
    errno.ENOENT: ErrorCode.NOT_FOUND,
    errno.ENOTDIR: ErrorCode.NOT_FOUND,
    errno.ESTALE: ErrorCode.NOT_FOUND,
    errno.ELOOP: ErrorCode.NOT_FOUND,
    errno.EACCES: ErrorCode.ACCESS_DENIED,
    errno.EPERM: ErrorCode.ACCESS_DENIED,
    errno.ENAMETOOLONG: ErrorCode.BAD_URI,
}


class FileFetcher:
    """Thread-safe; holds no open file between two calls.

    Args:
        roots: folders whose content may be read, resolved here, once. Without any, everything is refused.
        max_image_bytes: the largest file that is read.

    Raises:
        UsageError: there are roots, but no /proc on this machine.
    """

    def __init__(self, roots: Iterable[Path], max_image_bytes: int) -> None:
        resolved = [os.path.realpath(root) for root in roots]
        if resolved and not Path(_OPEN_FILES).is_dir():
            raise UsageError("CLIPFLEET_FILE_ROOTS needs /proc, which is not mounted here")
        # With a slash at the end, or /data would open /database.
        self._prefixes = tuple(root.rstrip("/") + "/" for root in resolved)
        self._max_image_bytes = max_image_bytes

    def read(self, uri: str) -> bytes:
        """Read a file.

        Args:
            uri: an absolute path, taken literally, or a `file://` URL, percent-decoded.

        Raises:
            ItemFailure: `path_refused`, `bad_uri`, `not_found`, `access_denied`, `too_many_bytes`, or
                `incomplete_body` where the disk or the machine fails while reading.
        """
        with self._opened(uri) as (descriptor, size_bytes):
            return self._read_all(descriptor, size_bytes)

    def read_member(self, uri: str) -> bytes:
        """Read an image in a tar archive, which itself may have any size; otherwise like `read`.

        Args:
            uri: see `clipfleet.contract.tar_member`. The archive's headers are not read.
        """
        member = archive_member(uri)
        size_bytes, offset_bytes = member.size_bytes, member.offset_bytes
        if size_bytes > self._max_image_bytes:
            raise too_many_bytes(self._max_image_bytes)
        data = bytearray()
        with self._opened(member.archive) as (descriptor, _):
            while part := os.pread(descriptor, size_bytes - len(data), offset_bytes + len(data)):
                data += part
        if len(data) < size_bytes:
            raise ItemFailure(
                ErrorCode.INCOMPLETE_BODY, f"the file ends after {len(data)} of {size_bytes} bytes"
            )
        return bytes(data)

    @contextmanager
    def _opened(self, uri: str) -> Iterator[tuple[int, int]]:
        """A descriptor of a regular file inside the roots, and its size before it was opened."""
        if not self._prefixes:
            raise ItemFailure(
                ErrorCode.PATH_REFUSED,
                "this worker reads no local files: CLIPFLEET_FILE_ROOTS is not set",
            )
        path = path_of(uri)
        try:
            descriptor, size_bytes = self._open(path)
            try:
                yield descriptor, size_bytes
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._failure(path, error) from error

    def _open(self, path: str) -> tuple[int, int]:
        pinned = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            handle = f"{_OPEN_FILES}/{pinned}"
            # PTH115: a Path per image costs as much as the call
            if not os.readlink(handle).startswith(self._prefixes):  # noqa: PTH115
                raise _outside()
            status = os.fstat(pinned)
            if not stat.S_ISREG(status.st_mode):
                raise _no_file(status)
            return os.open(handle, _READ_FLAGS), status.st_size
        finally:
            os.close(pinned)

    def _read_all(self, descriptor: int, expected_bytes: int) -> bytes:
        # One byte more than expected: if it is missing, the file has ended and no further call is needed.
        # Otherwise the size is not trusted: a file may grow meanwhile, and some file systems report 0.
        if expected_bytes > self._max_image_bytes:
            raise too_many_bytes(self._max_image_bytes)
        parts = []
        total = 0
        size = expected_bytes + 1 if expected_bytes else _READ_BYTES
        while part := os.read(descriptor, size):
            total += len(part)
            if total > self._max_image_bytes:
                raise too_many_bytes(self._max_image_bytes)
            parts.append(part)
            if total == expected_bytes:
                break
            size = _READ_BYTES
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _failure(self, path: str, error: OSError) -> ItemFailure:
        # Only errors of paths inside the roots are reported: others would reveal which files exist.
        try:
            real_path = os.path.realpath(path)
        except OSError:  # a link was swapped meanwhile and may lead anywhere
            return _outside()
        if not real_path.startswith(self._prefixes):
            return _outside()
        code = _CODES.get(error.errno or 0, ErrorCode.INCOMPLETE_BODY)
        return ItemFailure(code, error.strerror or type(error).__name__)


def path_of(uri: str) -> str:
    """The absolute path that a URI names; does not access the file system.

    Raises:
        ItemFailure: `bad_uri` for a relative path, a file on another host, or a name no file can have.
    """
    try:
        path = uri if uri.startswith("/") else _path_in_url(uri)
        if not path.isascii():
            os.fsencode(path)
    except UnicodeEncodeError:
        raise ItemFailure(ErrorCode.BAD_URI, "not valid Unicode") from None
    if "\0" in path:
        raise ItemFailure(ErrorCode.BAD_URI, "a path cannot contain a NUL byte")
    return path


def _path_in_url(uri: str) -> str:
    match = _FILE_URL.fullmatch(uri)
    if match is None:
        raise ItemFailure(ErrorCode.BAD_URI, "neither an absolute path nor a file:///absolute/path URL")
    if (match["host"] or "").lower() not in ("", "localhost"):
        raise ItemFailure(
            ErrorCode.BAD_URI, "a file URL that names a host: only the worker's own files are read"
        )
    if "?" in uri or "#" in uri:
        raise ItemFailure(ErrorCode.BAD_URI, "? and # in a file URL must be written %3F and %23")
    return os.fsdecode(unquote_to_bytes(match["path"]))


def _no_file(status: os.stat_result) -> ItemFailure:
    if stat.S_ISDIR(status.st_mode):
        return ItemFailure(ErrorCode.NOT_FOUND, "a folder, not a file")
    return ItemFailure(ErrorCode.PATH_REFUSED, "a pipe, socket or device, not a file")


def _outside() -> ItemFailure:
    return ItemFailure(
        ErrorCode.PATH_REFUSED, "outside the folders of CLIPFLEET_FILE_ROOTS (with `up`: of --root)"
    )
