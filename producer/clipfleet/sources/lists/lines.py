"""Files as lines of UTF-8 text, optionally gzipped."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import pyarrow as pa

from clipfleet.contract.jobs import SourceDescription
from clipfleet.errors import SourceError
from clipfleet.sources.batches import in_batches, item_batch
from clipfleet.sources.files import ReadOptions, SourceFile
from clipfleet.sources.uris import absolute_uris

MAX_LINE_BYTES = 64 * 1024 * 1024  # fits a data: URL; a longer line is not a list of images
BOM = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_GZIP = b"\x1f\x8b"


class TextFile:
    """Reads lines of a file."""

    def __init__(self, file: SourceFile, *, is_gzip: bool = False) -> None:
        self.file = file
        self._is_gzip = is_gzip

    def lines(self) -> Iterator[str]:
        r"""Iterate over the lines with their ends (`\n`, `\r\n`), without a byte order mark.

        Raises:
            SourceError: see `SourceFile.open`; or it is not UTF-8, or not a complete gzip file.
        """
        with self.file.open() as stream:
            if not self._is_gzip:
                yield from self._decoded(stream)
                return
            with self._gzip_errors(), gzip.GzipFile(fileobj=stream) as unpacked:
                yield from self._decoded(unpacked)

    def error(self, line: int, problem: str) -> SourceError:
        """Build an error for a line, counted from 1."""
        return SourceError(f"{self.file.name}:{line}: {problem}")

    @contextmanager
    def _gzip_errors(self) -> Iterator[None]:
        name = self.file.name
        try:
            yield
        except gzip.BadGzipFile:
            raise SourceError(f"{name}: not a gzip file, despite its name") from None
        except EOFError:
            raise SourceError(f"{name}: the gzip file is truncated; is the copy complete?") from None
        except zlib.error as error:
            raise SourceError(f"{name}: the gzip file is damaged: {error}") from None

    def _decoded(self, stream: BinaryIO | gzip.GzipFile) -> Iterator[str]:
        number = 0
        while raw := stream.readline(MAX_LINE_BYTES):
            number += 1
            if number == 1:
                raw = raw.removeprefix(BOM)
            if len(raw) == MAX_LINE_BYTES:
                raise self.error(number, f"the line is longer than {MAX_LINE_BYTES:,} bytes")
            yield decoded_line(raw, self.file.name, number)


def decoded_line(raw: bytes, name: str, number: int) -> str:
    """Decode a line.

    Raises:
        SourceError: it is not UTF-8; the message names the line, counted from 1, and a guess of the format.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        hint = ""
        if number == 1 and raw.startswith(_UTF_16):
            hint = " (it looks like UTF-16)"
        elif number == 1 and raw.startswith(_GZIP):
            hint = " (it looks like gzip: name it .gz, or unpack it)"
        problem = f"byte {error.start + 1} of the line is not UTF-8{hint}; save the file as UTF-8"
        raise SourceError(f"{name}:{number}: {problem}") from error


class TxtSource:
    """See `clipfleet.sources.Source`: one URL or path per line, stripped.

    Blank lines are skipped. Paths are relative to the folder of the file. The id of an item is its index.
    """

    def __init__(self, file: SourceFile, options: ReadOptions, *, is_gzip: bool = False) -> None:
        self._text = TextFile(file, is_gzip=is_gzip)
        self._base = options.base_in(file.folder)
        self._named_by_uri = options.named_by_uri
        self.description = SourceDescription(
            kind="txt", uri=file.uri, options=file.state() | options.described()
        )

    def batches(self) -> Iterator[pa.RecordBatch]:
        first_index = 0
        entries = (entry for line in self._text.lines() if (entry := line.strip()))
        for uris in in_batches(entries, len):
            yield item_batch(
                first_index,
                None,
                absolute_uris(pa.array(uris, pa.string()), self._base),
                named_by_uri=self._named_by_uri,
            )
            first_index += len(uris)
        if first_index == 0:
            raise SourceError(f"{self._text.file.name}: the file holds only blank lines")
