"""The files that sources read, and how: what they have in common, and those of this machine."""

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
    """What a caller may say beside the name of a source."""

    url_column: str | None = None  # field with the URLs, paths or images, where its name is no usual one
    id_column: str | None = None  # field with the user's names of the items
    base_uri: str | None = None  # what relative paths and bare keys are below
    holds_texts: bool = False  # instead of URLs: `url_column` is the field with the text then

    def base_in(self, folder: str) -> str:
        """What is put before the relative names of a list in this folder; empty: they are no names."""
        if self.holds_texts:
            return ""
        return base_of(self.base_uri) if self.base_uri else folder

    @property
    def content_field(self) -> str:
        """Field of what is given without one."""
        return "text" if self.holds_texts else "url"

    @property
    def content_option(self) -> str:
        """Option of the command line that sets `url_column`."""
        return "--text-column" if self.holds_texts else "--url-column"

    def described(self) -> dict[str, str]:
        """What changes the meaning of a list, in the words of `SourceDescription.options`."""
        return {"base_uri": base_of(self.base_uri)} if self.base_uri else {}


BY_NAME = ReadOptions()  # the name of the source says it all


class SourceFile(Protocol):
    """A file with a list of items or with images in it, and what it looked like when it was named."""

    name: str  # for messages
    uri: str  # absolute path or URI
    folder: str  # what relative names inside the file are below, with a slash at the end

    def state(self) -> dict[str, str]:
        """Changes with the content, in the words of `SourceDescription.options`."""

    def open(self) -> AbstractContextManager[BinaryIO]:
        """The bytes, seekable.

        Raises:
            SourceError: on entering or leaving, and instead of any `OSError` inside the context: the file
                cannot be read, or was changed meanwhile, so that the items would be a mixture.
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
        """Size and time of change."""
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
