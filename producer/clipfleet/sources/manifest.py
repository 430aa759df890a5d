"""What the text manifests (.txt, .csv) have in common: a local file, its identity, its lines as UTF-8."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from clipfleet.errors import SourceError
from clipfleet.sources.uris import printable

_MAX_LINE_BYTES = 64 * 1024 * 1024  # room for a data: URL; what is longer is no list of images
_BOM = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


class Manifest:
    """A file that names one image per record, and what it looked like when it was opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = printable(str(path))
        with self._readable():
            self._state = path.stat()
        if self._state.st_size == 0:
            raise SourceError(f"{self.name}: the file is empty")

    def options(self) -> dict[str, str]:
        """Size and time of change, in the words of `SourceDescription.options`."""
        return {"size": str(self._state.st_size), "mtime_ns": str(self._state.st_mtime_ns)}

    def lines(self) -> Iterator[str]:
        r"""Lines of the file with their ends (`\n`, `\r\n`), without a byte order mark.

        Raises:
            SourceError: the file cannot be read, is not UTF-8, or was changed while it was read: the items
                would be a mixture of both contents.
        """
        with self._readable(), self.path.open("rb") as file:
            yield from self._decoded(file)
            self._require_unchanged(os.fstat(file.fileno()))

    def error(self, line: int, problem: str) -> SourceError:
        """The error that names this file and a line, counted from 1."""
        return SourceError(f"{self.name}:{line}: {problem}")

    def _decoded(self, file: BinaryIO) -> Iterator[str]:
        number = 0
        while raw := file.readline(_MAX_LINE_BYTES):
            number += 1
            if number == 1:
                raw = raw.removeprefix(_BOM)
            if len(raw) == _MAX_LINE_BYTES:
                raise self.error(number, f"the line is longer than {_MAX_LINE_BYTES:,} bytes")
            try:
                yield raw.decode()
            except UnicodeDecodeError as error:
                hint = " (it looks like UTF-16)" if number == 1 and raw.startswith(_UTF_16) else ""
                problem = f"byte {error.start + 1} of the line is not UTF-8{hint}; save the file as UTF-8"
                raise self.error(number, problem) from error

    def _require_unchanged(self, state: os.stat_result) -> None:
        if (state.st_size, state.st_mtime_ns) != (self._state.st_size, self._state.st_mtime_ns):
            raise SourceError(f"{self.name}: the file was changed while it was read; submit it again")

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SourceError(f"{self.name}: cannot be read: {error.strerror or error}") from error
