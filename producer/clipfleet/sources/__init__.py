"""Where items come from: the protocol, the choice of the kind, and one file per kind.

A source is read once, in a stable order and in bounded memory. It knows names and columns, never pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import pyarrow as pa

from clipfleet.contract import SourceDescription
from clipfleet.errors import SourceError
from clipfleet.s3 import SCHEME as S3_SCHEME
from clipfleet.sources.files import BY_NAME, ReadOptions
from clipfleet.sources.formats import SUPPORTED
from clipfleet.sources.iterable import FrameRows, Item, IterableSource, is_frame
from clipfleet.sources.local import open_local
from clipfleet.sources.s3 import open_s3
from clipfleet.sources.stdin import StdinSource
from clipfleet.sources.uris import has_scheme, printable

__all__ = ["SUPPORTED", "ReadOptions", "Source", "SourceLike", "open_source", "source_of"]

SourceLike = str | os.PathLike[str] | Iterable[Item]

STDIN = "-"


class Source(Protocol):
    """A finite, ordered stream of items."""

    @property
    def description(self) -> SourceDescription:
        """What the source is, as far as it shows from outside; equal descriptions promise equal items."""

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The items, as batches of up to 8,192 rows; one without rows says that nothing came for a while.

        Columns: `item_index` (int64, from 0 without gaps), `item_id`, `uri` (strings), then the columns of
        `description.extra_columns` in that order, of whatever type, and the pictures themselves where the
        source holds them (`parts.INLINE_COLUMN`, binary; null: fetch `uri`). All batches have one schema.
        Where the source knows of each item what changes with its content, that follows
        (`parts.VERSION_COLUMN`, strings); it is not staged, see `contents.py`.
        `uri` is an absolute local path or a URL; a URL keeps its userinfo (`user:password@`), which the
        fetch needs and the part leaves out.

        Raises:
            SourceError: while iterating, where the source cannot be read any further or holds no items at
                all.
        """


def open_source(text: str, options: ReadOptions = BY_NAME) -> Source:
    """The source that a user means by `text`: a folder, a pattern, a list, a table or one picture.

    What exists under exactly this name comes first, so a file called `a[1].jpg` is that file and no pattern.

    Args:
        text: path or pattern; a relative one counts from the current folder, `~` is the home folder.
            `s3://...` likewise; `-` is standard input.
        options: how to read it.

    Raises:
        SourceError: there is nothing of this name, it is of no supported kind, or its header cannot be used.
        SourceUnavailableError: it is in S3, and the store is away.
    """
    if not text.strip():
        raise SourceError(f"the source is empty; {SUPPORTED}")
    if text == STDIN:
        return StdinSource(options)
    if text.startswith(S3_SCHEME):
        return open_s3(text, options)
    if has_scheme(text):
        raise SourceError(
            f"{printable(text)}: a URL cannot be a source itself, list it in a file; {SUPPORTED}"
        )
    return open_local(text, options)


def source_of(source: SourceLike, options: ReadOptions) -> Source:
    """Like `open_source`; anything that is iterable and no name holds the items themselves.

    Raises:
        SourceError: see `open_source`; also for a single picture or dict, which must be in a list.
    """
    if isinstance(source, str | os.PathLike):
        return open_source(os.fspath(source), options)
    if is_frame(source):
        return IterableSource(FrameRows(source), options)
    if isinstance(source, bytes | bytearray | memoryview | Mapping) or not isinstance(source, Iterable):
        raise SourceError(f"a {type(source).__name__} cannot be a source: put it into a list")
    return IterableSource(source, options)
