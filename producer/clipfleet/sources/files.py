"""Files that sources read: the protocol, the read options, and local files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from clipfleet.errors import SourceError
from clipfleet.sources.uris import base_of, local_uri, utf8_name


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Options of a source beyond its name."""

    url_column: str | None = None  # field with the URLs, paths or images, if not a default name
    id_column: str | None = None  # field with the item ids
    base_uri: str | None = None  # prefix for relative paths and bare keys
    holds_texts: bool = False  # items are texts, not URLs: `url_column` is the field with the text
    sample: int | None = None  # number of items to choose, see `SampledSource`; None: all of them
    named_by_uri: bool = False  # an item without an id is named by its URI, not by its position

    def base_in(self, folder: str) -> str:
        """Prefix for the relative names of a list in this folder; empty if items are not names."""
        if self.holds_texts:
            return ""
        return base_of(self.base_uri) if self.base_uri else folder

    @property
    def content_field(self) -> str:
        """Field name for items that are plain strings."""
        return "text" if self.holds_texts else "url"

    @property
    def content_option(self) -> str:
        """Option that sets `url_column`, as in messages."""
        return "`text_column=`" if self.holds_texts else "`url_column=`"

    def described(self) -> dict[str, str]:
        """Options that change the meaning of a list, as `SourceDescription.options`."""
        return {"base_uri": base_of(self.base_uri)} if self.base_uri else {}


BY_NAME = ReadOptions()  # defaults


class SourceFile(Protocol):
    """A file with a list of items or images, and its state when it was opened first."""

    name: str  # for messages
    uri: str  # absolute path or URI
    folder: str  # prefix for relative names inside the file, ends in a slash

    def state(self) -> dict[str, str]:
        """Version of the content, as `SourceDescription.options`."""

    def open(self) -> AbstractContextManager[BinaryIO]:
        """Open the bytes, seekable.

        Raises:
            SourceError: on enter or exit, and in place of any `OSError` inside the context: the file cannot
                be read, or changed in the meantime, which would mix two versions.
        """


class LocalFile:
    """See `SourceFile`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = utf8_name(str(path))
        self.uri = local_uri(str(path))
        self.folder = f"{path.parent}/".replace("//", "/")
        with self._readable():
            self._state = path.stat()
        if self._state.st_size == 0:
            raise SourceError(f"{self.name}: the file is empty")

    def state(self) -> dict[str, str]:
        """Size and mtime."""
        return {"size": str(self._state.st_size), "mtime_ns": str(self._state.st_mtime_ns)}

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        with self._readable(), self._path.open("rb") as stream:
            yield stream
            self._require_unchanged(os.fstat(stream.fileno()))

    def _require_unchanged(self, state: os.stat_result) -> None:
        if (state.st_size, state.st_mtime_ns) != (self._state.st_size, self._state.st_mtime_ns):
            raise SourceError(f"{self.name}: the file changed while it was read; submit it again")

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SourceError(f"{self.name}: cannot be read: {error.strerror or error}") from error
