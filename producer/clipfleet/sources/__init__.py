"""Where items come from: the protocol, the choice of the kind, and one file per kind.

A source is read once, in a stable order and in bounded memory. It knows names and columns, never pixels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from clipfleet.contract import SourceDescription
from clipfleet.errors import SourceError
from clipfleet.sources.csv import CsvSource
from clipfleet.sources.folder import FolderSource, is_picture_name
from clipfleet.sources.glob import GlobSource, has_wildcards
from clipfleet.sources.txt import TxtSource
from clipfleet.sources.uris import has_scheme, printable

__all__ = ["SUPPORTED", "Source", "open_source"]

SUPPORTED = (
    "supported are a folder, a pattern such as 'pictures/**/*.jpg', a .txt file with one URL or path "
    "per line, a .csv file with a header row, and a single picture"
)


class Source(Protocol):
    """A finite, ordered stream of items."""

    @property
    def description(self) -> SourceDescription:
        """What the source is, as far as it shows from outside; equal descriptions promise equal items."""
        ...

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The items, as batches of 1 to 8,192 rows.

        Columns: `item_index` (int64, from 0 without gaps), `item_id`, `uri` (strings), then the columns of
        `description.extra_columns` in that order (strings). `uri` is an absolute local path or a URL; a URL
        keeps its userinfo (`user:password@`), which the fetch needs and the part leaves out.

        Raises:
            SourceError: while iterating, where the source cannot be read any further or holds no items at
                all.
        """
        ...


def open_source(text: str, *, url_column: str | None = None, id_column: str | None = None) -> Source:
    """The source that a user means by `text`: a folder, a pattern, a manifest or one picture.

    What exists under exactly this name comes first, so a file called `a[1].jpg` is that file and no pattern.

    Args:
        text: path or pattern; a relative one counts from the current folder, `~` is the home folder.
        url_column: column of a CSV that holds the URLs or paths, where its name is not one of the usual ones.
        id_column: column of a CSV that holds the user's names of the items.

    Raises:
        SourceError: there is nothing of this name, it is of no supported kind, or its header cannot be used.
    """
    path = _absolute(text)
    if path.suffix.lower() == ".csv" and path.is_file():
        return CsvSource(path, url_column=url_column, id_column=id_column)
    if url_column is not None or id_column is not None:
        raise SourceError(f"{printable(text)}: --url-column and --id-column apply to .csv files only")
    return _without_columns(text, path)


def _without_columns(text: str, path: Path) -> Source:
    if path.is_dir():
        return FolderSource(path)
    if path.is_file():
        if path.suffix.lower() == ".txt":
            return TxtSource(path)
        if is_picture_name(path.name):
            return GlobSource.of_one_file(path)
        raise SourceError(f"{printable(str(path))}: a file of this kind cannot be a source; {SUPPORTED}")
    if path.exists():
        raise SourceError(f"{printable(str(path))}: neither a folder nor an ordinary file; {SUPPORTED}")
    if has_wildcards(text):
        return GlobSource.of_pattern(path)
    raise SourceError(f"{printable(str(path))}: does not exist")


def _absolute(text: str) -> Path:
    if not text.strip():
        raise SourceError(f"the source is empty; {SUPPORTED}")
    if has_scheme(text):
        raise SourceError(
            f"{printable(text)}: a URL cannot be a source itself, list it in a file; {SUPPORTED}"
        )
    path = Path(text)
    with contextlib.suppress(RuntimeError):  # no such user, or no home: then it is an ordinary name
        path = path.expanduser()
    try:
        path.exists()
    except OSError as error:
        raise SourceError(f"{printable(text)}: {error.strerror}") from error
    return path.absolute()
