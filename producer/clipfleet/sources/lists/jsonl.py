"""JSON Lines files: one object per line.

Fields other than those of image and id are copied: numbers, booleans and text as they are, nested values as
JSON. `records.py` infers columns and types. Paths are relative to the folder of the file.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import islice
from typing import Any

import pyarrow as pa

from clipfleet.contract.jobs import SourceDescription
from clipfleet.errors import SourceError
from clipfleet.sources.batches import in_batches
from clipfleet.sources.files import ReadOptions, SourceFile
from clipfleet.sources.lists.lines import TextFile
from clipfleet.sources.lists.records import RecordTable

_SAMPLE_RECORDS = 8192
_SAMPLE_CHARACTERS = 8 * 1024 * 1024

SizedRecord = tuple[dict[str, Any], int]  # with the length of its line


class JsonlSource:
    """See `clipfleet.sources.Source`."""

    def __init__(self, file: SourceFile, options: ReadOptions, *, is_gzip: bool = False) -> None:
        self._text = TextFile(file, is_gzip=is_gzip)
        self._name = file.name
        sample, is_all = self._sample()
        self._table = RecordTable(
            sample, options, where=file.name, base=options.base_in(file.folder), is_all=is_all
        )
        self.description = SourceDescription(
            kind="jsonl",
            uri=file.uri,
            options=file.state() | options.described() | self._table.described(),
            extra_columns=self._table.extra_columns,
        )

    def batches(self) -> Iterator[pa.RecordBatch]:
        first_index = 0
        for records in in_batches(self._records(), lambda sized: sized[1]):
            yield self._table.batch(first_index, [record for record, _ in records])
            first_index += len(records)

    def _sample(self) -> tuple[list[dict[str, Any]], bool]:
        """The records that determine the columns, and whether they are all."""
        sample = []
        characters = 0
        with closing(self._records()) as records:
            for record, size in islice(records, _SAMPLE_RECORDS):
                sample.append(record)
                characters += size
                if characters >= _SAMPLE_CHARACTERS:
                    break
            is_all = next(records, None) is None
        if not sample:
            raise SourceError(f"{self._name}: the file holds only blank lines")
        return sample, is_all

    def _records(self) -> Generator[SizedRecord, None, None]:
        for number, line in enumerate(self._text.lines(), 1):
            if not line.isspace():
                yield json_record(line, self._name, number), len(line)


def json_record(line: str, name: str, number: int) -> dict[str, Any]:
    """Parse the JSON object of a line.

    Raises:
        SourceError: it is not an object; the message names the line, counted from 1.
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        problem = (
            error.args[0].partition(": line ")[0] if isinstance(error, ValueError) else "nested too deeply"
        )
        raise SourceError(f"{name}:{number}: not a line of JSON: {problem}") from None
    if not isinstance(value, dict):
        raise SourceError(f"{name}:{number}: not a JSON object but a {type(value).__name__}")
    return value
