"""Chooses the list source of a file by its extension."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from clipfleet.errors import SourceError
from clipfleet.sources.batches import Source
from clipfleet.sources.files import ReadOptions, SourceFile
from clipfleet.sources.lists.csv import CsvSource
from clipfleet.sources.lists.jsonl import JsonlSource
from clipfleet.sources.lists.lines import TxtSource
from clipfleet.sources.lists.parquet import ParquetSource
from clipfleet.sources.uris import utf8_name

SUPPORTED = (
    "supported: a folder, a pattern such as 'images/**/*.jpg', a .txt file with one URL or path "
    "per line, a table (.csv, .tsv, .jsonl, .parquet), .tar shards, a single image, "
    "each also as s3://BUCKET/..., the URL of an image, and - for standard input"
)

OpenList = Callable[[SourceFile, ReadOptions], Source]

_TEXT: dict[str, Callable[..., Source]] = {
    ".txt": TxtSource,
    ".csv": CsvSource,
    ".tsv": partial(CsvSource, separator="\t"),
    ".jsonl": JsonlSource,
    ".ndjson": JsonlSource,
}
_LISTS: dict[str, OpenList] = {
    **_TEXT,
    **{f"{end}.gz": partial(kind, is_gzip=True) for end, kind in _TEXT.items()},
    ".parquet": ParquetSource,
}
_WITH_COLUMNS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


def list_opener(name: str) -> OpenList | None:
    """The source class for this extension; None if it is not a list."""
    end = _ending(name)
    return _LISTS.get(end) if end else None


def is_shard_name(name: str) -> bool:
    """Whether a file name has the extension of a tar archive."""
    return name.lower().endswith(".tar")


def require_fit(text: str, options: ReadOptions, *, is_list: bool) -> None:
    """Refuse options that the source would ignore.

    Raises:
        SourceError: an option does not apply; names the sources it applies to.
    """
    is_table = is_list and (_ending(text) or "").removesuffix(".gz") in _WITH_COLUMNS
    if not is_table and (options.url_column is not None or options.id_column is not None):
        raise SourceError(
            f"{utf8_name(text)}: {options.content_option} and `id_column=` apply to tables only "
            "(.csv, .tsv, .jsonl, .parquet)"
        )
    if not is_list and options.base_uri is not None:
        raise SourceError(f"{utf8_name(text)}: `base_uri=` applies to lists and tables only")


def refuse_pattern_of_lists(pattern: str) -> None:
    """Refuse a pattern of lists, whose matches would be taken for images.

    Raises:
        SourceError: the pattern has the extension of a list or a table.
    """
    if list_opener(pattern) is not None:
        raise SourceError(
            f"{utf8_name(pattern)}: a pattern matches images or .tar shards only; submit lists one by one"
        )


def _ending(name: str) -> str | None:
    return next((end for end in _LISTS if name.lower().endswith(end)), None)
