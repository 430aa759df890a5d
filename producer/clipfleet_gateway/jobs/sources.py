"""Sources of jobs: opened for a key, and every item checked before a worker learns of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.jobs import SourceDescription
from clipfleet.contract.parts import INLINE_COLUMN
from clipfleet.contract.tar_member import tar_member
from clipfleet.errors import SourceError
from clipfleet.sources import ReadOptions, Source, open_source
from clipfleet.sources.lists.formats import list_opener, require_fit
from clipfleet.sources.uris import local_path
from clipfleet.sources.walk import expand_braces
from clipfleet_gateway.errors import ApiError, denied, invalid
from clipfleet_gateway.files.record import FileRecord
from clipfleet_gateway.files.store import FileStore
from clipfleet_gateway.keys.key import Key
from clipfleet_gateway.keys.sources import require_readable

_READ_BYTES = 1 << 20
DATA = "data:"
_MOST_BRACES, _MOST_NAMES = 8, 10_000  # of the shards that one name stands for
# Kinds whose items are files that were listed, and whose names may be percent-encoded `file://` URLs.
_LISTED = ("folder", "glob", "tar")
_LISTS = "an own list must be named .txt, .csv, .tsv, .jsonl or .parquet, or one of the first four with .gz"


class OwnFile:
    """A file of a key; see `SourceFile`. Names in it are relative to nothing."""

    folder = ""

    def __init__(self, files: FileStore, owner: str, record: FileRecord) -> None:
        self._files = files
        self._owner = owner
        self._record = record
        self.name = record.filename
        self.uri = record.id

    def state(self) -> dict[str, str]:
        """Its hash: files never change."""
        return {"sha256": self._record.sha256}

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        try:
            content = self._files.content(self._owner, self.uri)
        except FileNotFoundError:
            raise SourceError(f"{self.uri} was deleted before all of it was read") from None
        with content:
            yield cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, content), _READ_BYTES))

    def as_list(self, options: ReadOptions) -> Source:
        """Its items. Raises `SourceError`: its header is invalid, or an option does not apply."""
        opener = list_opener(self.name)
        if opener is None:
            raise SourceError(f"{self.name}: {_LISTS}")
        require_fit(self.name, options, is_list=True)
        return opener(self, options)

    def line_of(self, kind: str, index: int) -> int | None:
        """Line of an item, counted from 1; None for lists without lines."""
        if kind not in ("txt", "jsonl", "csv", "tsv") or self.name.lower().endswith(".gz"):
            return None
        with self.open() as stream, io.TextIOWrapper(stream, "utf-8-sig", errors="replace") as text:
            lines = _filled_lines(text) if kind in ("txt", "jsonl") else _record_lines(text, kind)
            return next(islice(lines, index, None), None)


class CheckedSource:
    """The items of a source, as long as the key may read each one. See `clipfleet.sources.Source`.

    Raises `ApiError` while iterating: an item that it may not, or too many for its quota.

    Args:
        source: whose items these are.
        check: of an address; None: the items are texts.
        count: called with the number of items so far, before they are passed on.
        line_of: line of an item in its list, as far as it is known.
    """

    def __init__(
        self,
        source: Source,
        check: Callable[[str], None] | None,
        count: Callable[[int], object],
        line_of: Callable[[int], int | None] = lambda index: None,
    ) -> None:
        self._source = source
        self._check = check
        self._count = count
        self._line_of = line_of

    @property
    def description(self) -> SourceDescription:
        return self._source.description

    def batches(self) -> Iterator[pa.RecordBatch]:
        total = 0
        for batch in self._source.batches():
            if self._check is not None:
                self._require_all(batch)
            total += batch.num_rows
            self._count(total)
            yield batch

    def _require_all(self, batch: pa.RecordBatch) -> None:
        uris = batch["uri"]
        if INLINE_COLUMN in batch.schema.names:  # an image in the list needs no address
            uris = pc.if_else(batch[INLINE_COLUMN].is_valid(), "", uris)
        is_listed = self.description.kind in _LISTED
        for index, uri in zip(batch["item_index"], uris.to_pylist(), strict=True):
            try:
                self._require(uri, is_listed=is_listed)
            except ApiError as error:
                raise self._with_place(error, index.as_py()) from None

    def _require(self, uri: str, *, is_listed: bool) -> None:
        assert self._check is not None  # noqa: S101 - asked by `batches`
        if not uri or uri[: len(DATA)].lower() == DATA:  # an empty one becomes a failed row
            return
        if is_listed:
            uri = local_path(_archive_of(uri))
        self._check(uri)

    def _with_place(self, error: ApiError, index: int) -> ApiError:
        line = self._line_of(index)
        where = f"item {index}" if line is None else f"line {line:,}"
        return denied(f"source: {where}: {error.message}", "source")


def _archive_of(uri: str) -> str:
    """The archive that an image lies in; other addresses are left unchanged."""
    with suppress(ValueError):
        return tar_member(uri).archive
    return uri


def own_list(files: FileStore, owner: str, file_id: str) -> OwnFile:
    """An own file that is a list. Raises `ApiError`: there is no such file (404), or it is no list."""
    record = files.require(owner, file_id, "source")
    if list_opener(record.filename) is None:
        raise invalid(f"source: {record.filename!r} is no list: {_LISTS}", "source", "not_a_list")
    return OwnFile(files, owner, record)


def place_of_key(address: str, key: Key, options: ReadOptions) -> Source:
    """Open a place that the key may read. Raises `ApiError` if it may not, otherwise like `open_source`."""
    require_place(address, key)
    return open_source(address, options)


def require_place(address: str, key: Key) -> None:
    """Check that a key may name a folder, pattern, list or archive as a source. Raises `ApiError`."""
    has_few = address.count("{") <= _MOST_BRACES
    names = [*islice(expand_braces(address), _MOST_NAMES)] if has_few else []
    if not 0 < len(names) < _MOST_NAMES:
        raise invalid(f"source: its braces stand for over {_MOST_NAMES:,} names: use a pattern", "source")
    for one in names:
        require_readable(one, key, "source")
        if ".." in one.split("/"):  # a pattern before it may stand for a link
            raise denied("source: a place to read cannot be written with ..", "source")


def _filled_lines(text: Iterable[str]) -> Iterator[int]:
    return (number for number, line in enumerate(text, 1) if line.strip())


def _record_lines(text: Iterable[str], kind: str) -> Iterator[int]:
    """First lines of the records below the header."""
    reader = csv.reader(text, delimiter="," if kind == "csv" else "\t")
    first, is_header = 1, True
    for record in reader:
        if record:
            if not is_header:
                yield first
            is_header = False
        first = reader.line_num + 1
