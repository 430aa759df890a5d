"""Which source a file is, by the end of its name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from clipfleet.sources.csv import CsvSource
from clipfleet.sources.files import SourceFile
from clipfleet.sources.jsonl import JsonlSource
from clipfleet.sources.options import ReadOptions
from clipfleet.sources.parquet import ParquetSource
from clipfleet.sources.txt import TxtSource

if TYPE_CHECKING:
    from clipfleet.sources import Source

OpenList = Callable[[SourceFile, ReadOptions], "Source"]

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
    """What reads a list of this name; None: it is no list."""
    end = _ending(name)
    return _LISTS.get(end) if end else None


def has_columns(name: str) -> bool:
    """True if a list of this name is a table."""
    return (_ending(name) or "").removesuffix(".gz") in _WITH_COLUMNS


def _ending(name: str) -> str | None:
    return next((end for end in _LISTS if name.lower().endswith(end)), None)
