"""CSV and TSV tables with a header row.

All columns but those of image and id are copied verbatim as text. Blank lines are skipped; a record without a
URL is an item that fails. Paths are relative to the folder of the file.
"""

from __future__ import annotations

import csv
from collections.abc import Generator, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.jobs import SourceDescription
from clipfleet.errors import SourceError
from clipfleet.sources.batches import in_batches, item_batch
from clipfleet.sources.files import ReadOptions, SourceFile
from clipfleet.sources.lists.columns import Columns, assign_columns
from clipfleet.sources.lists.lines import MAX_LINE_BYTES, TextFile
from clipfleet.sources.uris import absolute_uris
from clipfleet.wording import counted


class CsvSource:
    """See `clipfleet.sources.Source`. The separator is a comma, or a tab for a `.tsv`."""

    def __init__(
        self, file: SourceFile, options: ReadOptions, *, is_gzip: bool = False, separator: str = ","
    ) -> None:
        self._text = TextFile(file, is_gzip=is_gzip)
        self._name = file.name
        self._base = options.base_in(file.folder)
        self._named_by_uri = options.named_by_uri
        self._separator = separator
        header = self._header()
        self._count = len(header)
        self._columns = assign_columns(header, options, where=f"{file.name}:1")
        self.description = SourceDescription(
            kind="csv" if separator == "," else "tsv",
            uri=file.uri,
            options=file.state() | options.described() | self._columns.described(header),
            extra_columns=tuple(self._columns.extra),
        )

    def batches(self) -> Iterator[pa.RecordBatch]:
        first_index = 0
        for records in in_batches(self._checked_records(), _characters):
            yield _batch(first_index, records, self._columns, self._base, named_by_uri=self._named_by_uri)
            first_index += len(records)
        if first_index == 0:
            raise SourceError(f"{self._name}: the file has a header but no rows")

    def _header(self) -> list[str]:
        records = self._records()
        _, header = next(records, (0, []))
        records.close()
        if not header:
            raise SourceError(f"{self._name}: no header row found")
        return [name.strip() or f"column_{position}" for position, name in enumerate(header, 1)]

    def _checked_records(self) -> Iterator[list[str]]:
        records = self._records()
        next(records, None)
        for line, record in records:
            if len(record) != self._count:
                raise self._text.error(
                    line,
                    f"the row has {counted(len(record), 'field')}, "
                    f"the header names {counted(self._count, 'column')}",
                )
            yield record

    def _records(self) -> Generator[tuple[int, list[str]], None, None]:
        """Iterate over records with the number of their first line."""
        if csv.field_size_limit() < MAX_LINE_BYTES:  # a data: URL exceeds the default limit
            csv.field_size_limit(MAX_LINE_BYTES)
        reader = csv.reader(self._text.lines(), delimiter=self._separator, strict=True)
        line = 1
        try:
            for record in reader:
                if record:
                    yield line, record
                line = reader.line_num + 1
        except csv.Error as error:
            # An unclosed quote hits the field size limit, so memory stays bounded.
            raise self._text.error(line, f"not a well-formed row: {error} (a quote not closed?)") from error


def _batch(
    first_index: int, records: list[list[str]], columns: Columns, base: str, *, named_by_uri: bool
) -> pa.RecordBatch:
    values = [pa.array(column, pa.string()) for column in zip(*records, strict=True)]
    assert columns.url is not None  # noqa: S101 - text holds no images
    uris = absolute_uris(pc.utf8_trim_whitespace(values[columns.url]), base)
    ids = None if columns.id is None else values[columns.id]
    extra = {name: values[position] for name, position in columns.extra.items()}
    return item_batch(first_index, ids, uris, extra, named_by_uri=named_by_uri)


def _characters(record: list[str]) -> int:
    return sum(map(len, record))
