"""A comma-separated file with a header row; one column names the image, another one may name the item.

The column of the images is the one the caller names, else the first of `URL_COLUMNS` that is there; the
column of the ids likewise, with `ID_COLUMNS`. All other columns are carried along as text, exactly as they
are written. Names are compared without regard to case. Blank lines are left out; a record without a URL is an
item that will fail. Relative paths count from the file's folder.
"""

from __future__ import annotations

import csv
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract import SourceDescription
from clipfleet.errors import SourceError
from clipfleet.parts import extra_column_name
from clipfleet.sources.batches import in_batches, item_batch
from clipfleet.sources.manifest import Manifest
from clipfleet.sources.uris import absolute_uris, local_uri

URL_COLUMNS = ("url", "uri", "image_url", "image_path", "path", "key", "s3_key")
ID_COLUMNS = ("id", "item_id", "image_id")


@dataclass(frozen=True, slots=True)
class _Columns:
    """What each column of the file is for, as positions in a record."""

    url: int
    id: int | None
    extra: dict[str, int]  # name in our schema -> position
    count: int


class CsvSource:
    """See `clipfleet.sources.Source`."""

    def __init__(self, path: Path, *, url_column: str | None = None, id_column: str | None = None) -> None:
        self._manifest = Manifest(path)
        header = self._header()
        self._columns = self._assign(header, url_column, id_column)
        options = {"url_column": header[self._columns.url]} | self._manifest.options()
        if self._columns.id is not None:
            options["id_column"] = header[self._columns.id]
        self.description = SourceDescription(
            kind="csv",
            uri=local_uri(str(path)),
            options=options,
            extra_columns=tuple(self._columns.extra),
        )

    def batches(self) -> Iterator[pa.RecordBatch]:
        """See the protocol."""
        columns = self._columns
        first_index = 0
        for records in in_batches(self._checked_records()):
            values = [pa.array(column, pa.string()) for column in zip(*records, strict=True)]
            uris = absolute_uris(pc.utf8_trim_whitespace(values[columns.url]), self._manifest.path.parent)
            ids = None if columns.id is None else values[columns.id]
            extra = {name: values[position] for name, position in columns.extra.items()}
            yield item_batch(first_index, ids, uris, extra)
            first_index += len(records)
        if first_index == 0:
            raise SourceError(f"{self._manifest.name}: the file has a header and no rows")

    def _header(self) -> list[str]:
        records = self._records()
        _, header = next(records, (0, []))
        records.close()
        if not header:
            raise SourceError(f"{self._manifest.name}: no header row found")
        return [name.strip() or f"column_{position}" for position, name in enumerate(header, 1)]

    def _checked_records(self) -> Iterator[list[str]]:
        records = self._records()
        next(records, None)
        count = self._columns.count
        for line, record in records:
            if len(record) != count:
                raise self._manifest.error(
                    line, f"the row has {len(record)} fields, the header names {count} columns"
                )
            yield record

    def _records(self) -> Generator[tuple[int, list[str]], None, None]:
        """Records with the number of the line they start on."""
        reader = csv.reader(self._manifest.lines(), strict=True)
        line = 1
        try:
            for record in reader:
                if record:
                    yield line, record
                line = reader.line_num + 1
        except csv.Error as error:
            # A quote that is never closed runs into the module's limit of a field, so memory stays bounded.
            raise self._manifest.error(
                line, f"not a well-formed row: {error} (a quote not closed?)"
            ) from error

    def _assign(self, header: list[str], url_column: str | None, id_column: str | None) -> _Columns:
        self._require_unique(header, "column {!r} appears twice in the header")
        url = self._position(header, url_column, URL_COLUMNS, "--url-column")
        if url is None:
            raise self._manifest.error(
                1,
                f"no column is called {', '.join(URL_COLUMNS)}; the columns are {', '.join(header)}: "
                "name the one that holds the URLs or paths with --url-column",
            )
        id_position = self._position(header, id_column, ID_COLUMNS, "--id-column", besides=url)
        carried = [position for position in range(len(header)) if position not in (url, id_position)]
        names = [extra_column_name(header[position]) for position in carried]
        self._require_unique(
            names, "two columns would both be called {!r} in the results; rename one of them"
        )
        return _Columns(url, id_position, dict(zip(names, carried, strict=True)), len(header))

    def _position(
        self, header: list[str], chosen: str | None, usual: Sequence[str], option: str, besides: int = -1
    ) -> int | None:
        if chosen is None:
            lowered = [name.lower() for name in header]
            found = [lowered.index(name) for name in usual if name in lowered]
            return next((position for position in found if position != besides), None)
        exact = [position for position, name in enumerate(header) if name == chosen]
        loose = [position for position, name in enumerate(header) if name.lower() == chosen.strip().lower()]
        if not (exact or loose):
            raise self._manifest.error(
                1, f"{option} {chosen!r} is not there; the columns are {', '.join(header)}"
            )
        return (exact or loose)[0]

    def _require_unique(self, names: list[str], problem: str) -> None:
        seen: set[str] = set()
        for name in names:
            if name in seen:
                raise self._manifest.error(1, problem.format(name))
            seen.add(name)
