"""1. Sources of items: the protocol, the choice of the kind, and one module per kind.

A source is read once, in a stable order and in bounded memory. It reads names and columns, never pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from clipfleet.errors import SourceError
from clipfleet.s3.client import SCHEME as S3_SCHEME
from clipfleet.s3.client import with_s3_scheme
from clipfleet.sources.batches import Source
from clipfleet.sources.files import BY_NAME, ReadOptions
from clipfleet.sources.iterable import FrameRows, Item, IterableSource, is_frame
from clipfleet.sources.lists.formats import SUPPORTED
from clipfleet.sources.local import open_local
from clipfleet.sources.s3 import open_s3
from clipfleet.sources.sampled import SampledSource
from clipfleet.sources.stdin import StdinSource
from clipfleet.sources.uris import has_scheme
from clipfleet.sources.url import open_url

__all__ = ["SUPPORTED", "ReadOptions", "Source", "SourceLike", "open_source", "source_of"]

SourceLike = str | os.PathLike[str] | Iterable[Item] | Source

STDIN = "-"


def open_source(text: str, options: ReadOptions = BY_NAME) -> Source:
    """Open a source by name: a folder, a pattern, a list, a table or one image.

    An existing file takes precedence: `a[1].jpg` is that file, not a pattern.

    Args:
        text: path or pattern, relative to the current folder, with `~` for the home folder; or `s3://...`; or
            the URL of one image; or `-` for standard input.
        options: how to read it.

    Raises:
        SourceError: it does not exist, its kind is unsupported, or its header is invalid.
        SourceUnavailableError: it is in S3, and the store is unavailable.
    """
    if not text.strip():
        raise SourceError(f"the source is empty; {SUPPORTED}")
    if text == STDIN:
        return StdinSource(options)
    text = with_s3_scheme(text)
    if text.startswith(S3_SCHEME):
        return open_s3(text, options)
    if has_scheme(text):
        return open_url(text, options)
    return open_local(text, options)


def source_of(source: SourceLike, options: ReadOptions) -> Source:
    """Open a source by name, or wrap an iterable of items; of either, or of an open one, possibly a sample.

    Raises:
        SourceError: see `open_source`; also for a single image or dict, which must be in a list.
    """
    opened = _whole(source, options)
    return opened if options.sample is None else SampledSource(opened, options.sample)


def _whole(source: SourceLike, options: ReadOptions) -> Source:
    if isinstance(source, str | os.PathLike):
        return open_source(os.fspath(source), options)
    if isinstance(source, Source):
        return source
    if is_frame(source):
        return IterableSource(FrameRows(source), options)
    if isinstance(source, bytes | bytearray | memoryview | Mapping) or not isinstance(source, Iterable):
        raise SourceError(f"a {type(source).__name__} cannot be a source: put it into a list")
    return IterableSource(source, options)
