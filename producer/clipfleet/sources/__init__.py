"""Where items come from: the protocol, the choice of the kind, and one file per kind.

A source is read once, in a stable order and in bounded memory. It knows names and columns, never pixels.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from clipfleet.contract import SourceDescription
from clipfleet.errors import SourceError
from clipfleet.sources.files import LocalFile
from clipfleet.sources.folder import FolderSource, is_picture_name
from clipfleet.sources.formats import has_columns, list_opener
from clipfleet.sources.glob import GlobSource, has_wildcards
from clipfleet.sources.iterable import Item, IterableSource
from clipfleet.sources.options import BY_NAME, ReadOptions
from clipfleet.sources.stdin import StdinSource
from clipfleet.sources.uris import has_scheme, printable

__all__ = ["SUPPORTED", "ReadOptions", "Source", "SourceLike", "open_source", "source_of"]

SourceLike = str | os.PathLike[str] | Iterable[Item]

STDIN = "-"
SUPPORTED = (
    "supported are a folder, a pattern such as 'pictures/**/*.jpg', a .txt file with one URL or path "
    "per line, a table (.csv, .tsv, .jsonl, .parquet), - for standard input, and a single picture"
)


class Source(Protocol):
    """A finite, ordered stream of items."""

    @property
    def description(self) -> SourceDescription:
        """What the source is, as far as it shows from outside; equal descriptions promise equal items."""
        ...

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The items, as batches of up to 8,192 rows; none while nothing comes for a moment.

        Columns: `item_index` (int64, from 0 without gaps), `item_id`, `uri` (strings), then the columns of
        `description.extra_columns` in that order, of whatever type, and the pictures themselves where the
        source holds them (`parts.INLINE_COLUMN`, binary; null: fetch `uri`). All batches have one schema.
        `uri` is an absolute local path or a URL; a URL keeps its userinfo (`user:password@`), which the
        fetch needs and the part leaves out.

        Raises:
            SourceError: while iterating, where the source cannot be read any further or holds no items at
                all.
        """
        ...


def open_source(text: str, options: ReadOptions = BY_NAME) -> Source:
    """The source that a user means by `text`: a folder, a pattern, a list, a table or one picture.

    What exists under exactly this name comes first, so a file called `a[1].jpg` is that file and no pattern.

    Args:
        text: path or pattern; a relative one counts from the current folder, `~` is the home folder; `-` is
            standard input.
        options: how to read it.

    Raises:
        SourceError: there is nothing of this name, it is of no supported kind, or its header cannot be used.
    """
    if text == STDIN:
        return StdinSource(options)
    path = _absolute(text)
    opener = list_opener(path.name) if path.is_file() else None
    _require_fit(text, options, is_list=opener is not None, is_table=has_columns(path.name))
    if opener is not None:
        return opener(LocalFile(path), options)
    return _without_list(text, path)


def source_of(source: SourceLike, options: ReadOptions) -> Source:
    """Like `open_source`; anything that is iterable and no name holds the items themselves.

    Raises:
        SourceError: see `open_source`; also for a single picture or dict, which must be in a list.
    """
    if isinstance(source, str | os.PathLike):
        return open_source(os.fspath(source), options)
    if isinstance(source, bytes | bytearray | memoryview | Mapping) or not isinstance(source, Iterable):
        raise SourceError(f"a {type(source).__name__} cannot be a source: put it into a list")
    return IterableSource(source, options)


def _require_fit(text: str, options: ReadOptions, *, is_list: bool, is_table: bool) -> None:
    """Refuse options that a source of this kind would ignore."""
    if not (is_list and is_table) and (options.url_column is not None or options.id_column is not None):
        raise SourceError(
            f"{printable(text)}: --url-column and --id-column apply to tables only "
            "(.csv, .tsv, .jsonl, .parquet)"
        )
    if not is_list and options.base_uri is not None:
        raise SourceError(f"{printable(text)}: --base-uri applies to lists and tables only")


def _without_list(text: str, path: Path) -> Source:
    if path.is_dir():
        return FolderSource(path)
    if path.is_file():
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
