"""Standard input: one URL or path per line, or one JSON object per line if the first line begins with `{`.

Items are passed on within half a second of arrival; while the input is idle, empty batches let staging check
its clock. The wait for the first line has no timeout. Paths are relative to the current folder. In JSON lines
the fields of the first object become columns, later fields go into `other_fields`.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa

from clipfleet.contract.jobs import SourceDescription
from clipfleet.errors import SourceError
from clipfleet.sources.batches import MAX_BYTES, MAX_ROWS, PASS_ON_SECONDS, item_batch
from clipfleet.sources.files import ReadOptions
from clipfleet.sources.lists.jsonl import json_record
from clipfleet.sources.lists.lines import BOM, MAX_LINE_BYTES, decoded_line
from clipfleet.sources.lists.records import RecordTable
from clipfleet.sources.uris import absolute_uris

NAME = "stdin"
_BLOCK_BYTES = 1 << 16

NumberedLine = tuple[int, str]


class StdinSource:
    """See `clipfleet.sources.Source`. Readable once, as the only reader of the descriptor."""

    def __init__(
        self,
        options: ReadOptions,
        *,
        descriptor: int | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if descriptor is None:
            if sys.stdin is None:  # closed; another file may have reused its descriptor
                raise SourceError(f"{NAME}: closed")
            descriptor = 0
        self._descriptor = descriptor
        self._monotonic = monotonic
        self._base = options.base_in(f"{Path.cwd()}/")
        self._named_by_uri = options.named_by_uri
        self._blocks = self._read_blocks()
        self._first = self._wait_for_lines()
        number, line = self._first[0]
        self._table: RecordTable | None = None
        if line.startswith("{"):
            sample = [json_record(line, NAME, number)]
            self._table = RecordTable(sample, options, where=NAME, base=self._base, is_all=False)
        elif options.url_column is not None or options.id_column is not None:
            raise SourceError(f"{NAME}: `url_column=` and `id_column=` apply to JSON lines only")
        self.description = SourceDescription(
            kind="stdin",
            uri="-",
            options=options.described() | (self._table.described() if self._table else {}),
            extra_columns=self._table.extra_columns if self._table else (),
        )

    def batches(self) -> Iterator[pa.RecordBatch]:
        index = 0
        for lines in self._passed_on():
            yield self._batch(index, lines)
            index += len(lines)

    def _batch(self, first_index: int, lines: list[NumberedLine]) -> pa.RecordBatch:
        if self._table is not None:
            return self._table.batch(first_index, [json_record(line, NAME, number) for number, line in lines])
        uris = pa.array([line for _, line in lines], pa.string())
        return item_batch(first_index, None, absolute_uris(uris, self._base), named_by_uri=self._named_by_uri)

    def _passed_on(self) -> Iterator[list[NumberedLine]]:
        """Lines of one batch each: a full batch, or the lines of half a second."""
        yield from _of_batch_size(self._first)
        held: list[NumberedLine] = []
        since = self._monotonic()
        for block in self._blocks:
            held += block
            is_full = len(held) >= MAX_ROWS or sum(len(line) for _, line in held) >= MAX_BYTES
            if is_full or self._monotonic() - since >= PASS_ON_SECONDS:
                yield from _of_batch_size(held)
                held, since = [], self._monotonic()
        if held:
            yield from _of_batch_size(held)

    def _wait_for_lines(self) -> list[NumberedLine]:
        for block in self._blocks:
            if block:
                return block
        raise SourceError(f"{NAME}: no input: expected one item per line")

    def _read_blocks(self) -> Iterator[list[NumberedLine]]:
        """Read non-blank lines with their numbers; an empty list if the input is idle."""
        number = 0
        rest: list[bytes] = []  # of an incomplete line
        while True:
            data = self._read()
            if data is None:
                yield []
                continue
            *whole, last = data.split(b"\n") if data else [b"", b""]
            if whole:
                whole[0] = b"".join([*rest, whole[0]])
                rest = []
            rest.append(last)
            if sum(map(len, rest)) > MAX_LINE_BYTES:
                raise SourceError(
                    f"{NAME}:{number + len(whole) + 1}: the line is longer than {MAX_LINE_BYTES:,} bytes"
                )
            yield [*_decoded(whole, number)]
            number += len(whole)
            if not data:
                return

    def _read(self) -> bytes | None:
        """Read available bytes, empty at the end; None if the input is idle."""
        try:
            if not select.select([self._descriptor], [], [], PASS_ON_SECONDS)[0]:
                return None
            return os.read(self._descriptor, _BLOCK_BYTES)
        except OSError as error:
            raise SourceError(f"{NAME}: cannot be read: {error.strerror}") from error


def _of_batch_size(lines: list[NumberedLine]) -> Iterator[list[NumberedLine]]:
    for start in range(0, len(lines) or 1, MAX_ROWS):
        yield lines[start : start + MAX_ROWS]


def _decoded(lines: list[bytes], before: int) -> Iterator[NumberedLine]:
    for number, raw in enumerate(lines, before + 1):
        text = decoded_line(raw.removeprefix(BOM) if number == 1 else raw, NAME, number).strip()
        if text:
            yield number, text
