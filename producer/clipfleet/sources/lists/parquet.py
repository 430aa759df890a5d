"""Parquet files with a column of URLs or paths, or of the images themselves.

Images are a binary column, or a struct with the fields `bytes` and `path` as written by Hugging Face. They
are staged with the items, because reading single rows of a Parquet file is expensive. Other binary columns
are dropped, all others copied, see `arrow_values.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipfleet.contract.jobs import SourceDescription
from clipfleet.contract.parts import INLINE_COLUMN
from clipfleet.errors import SourceError
from clipfleet.sources.batches import MAX_ROWS, item_batch
from clipfleet.sources.files import ReadOptions, SourceFile
from clipfleet.sources.lists.arrow_values import as_text, carried, is_binary
from clipfleet.sources.lists.columns import URL_COLUMNS, assign_columns
from clipfleet.sources.uris import absolute_uris

_IMAGE_ROWS = 16  # rows per batch with images, to bound memory
_READ_BYTES = 1 << 20


class ParquetSource:
    """See `clipfleet.sources.Source`."""

    def __init__(self, file: SourceFile, options: ReadOptions) -> None:
        self._file = file
        self._base = options.base_in(file.folder)
        self._named_by_uri = options.named_by_uri
        with self._opened() as parquet:
            self._schema = parquet.schema_arrow
            header = self._schema.names
            self._rows = parquet.metadata.num_rows
        if self._rows == 0:
            raise SourceError(f"{file.name}: the file has no rows")
        held = [number for number, field in enumerate(self._schema) if _holds_images(field)]
        self._columns = assign_columns(header, options, where=file.name, bytes_columns=held)
        self.description = SourceDescription(
            kind="parquet",
            uri=file.uri,
            options=file.state() | options.described() | self._columns.described(header),
            extra_columns=tuple(self._columns.extra),
        )

    def batches(self) -> Iterator[pa.RecordBatch]:
        columns = self._columns
        wanted = {*columns.extra.values()} | {
            position for position in (columns.url, columns.bytes, columns.id) if position is not None
        }
        names = [self._schema.names[position] for position in sorted(wanted)]
        rows = MAX_ROWS if columns.bytes is None else _IMAGE_ROWS
        first_index = 0
        with self._opened() as parquet:
            for batch in parquet.iter_batches(rows, columns=names, use_threads=False):
                yield self._items(first_index, batch)
                first_index += batch.num_rows

    def _items(self, first_index: int, batch: pa.RecordBatch) -> pa.RecordBatch:
        columns, names = self._columns, self._schema.names
        extra = {name: carried(batch[names[position]]) for name, position in columns.extra.items()}
        ids = None if columns.id is None else as_text(batch[names[columns.id]])
        images, paths = (None, None) if columns.bytes is None else _images(batch[names[columns.bytes]])
        if columns.url is not None:
            uris = self._absolute(as_text(batch[names[columns.url]]))
        else:
            ids = paths if ids is None else ids
            uris, images = self._named(first_index, images, paths)
        if images is not None:
            extra[INLINE_COLUMN] = images
        return item_batch(first_index, ids, uris, extra, named_by_uri=self._named_by_uri)

    def _named(self, first_index: int, images: pa.Array, paths: pa.Array | None) -> tuple[pa.Array, pa.Array]:
        """URIs for images without a URL column, and the images; null if only a path is given."""
        rows = range(first_index, first_index + len(images))
        uris = pa.array([f"{self._file.uri}#{row}" for row in rows])
        held = pc.fill_null(images, b"")
        if paths is None:
            return uris, held
        elsewhere = self._absolute(paths)
        is_elsewhere = pc.and_(pc.is_null(images), pc.not_equal(elsewhere, ""))
        return pc.if_else(is_elsewhere, elsewhere, uris), pc.if_else(is_elsewhere, None, held)

    def _absolute(self, names: pa.Array) -> pa.Array:
        return absolute_uris(pc.fill_null(pc.utf8_trim_whitespace(names), ""), self._base)

    @contextmanager
    def _opened(self) -> Iterator[pq.ParquetFile]:
        """Open the file for buffered reads: a row group may exceed the memory of a submit."""
        name = self._file.name
        with self._file.open() as stream:
            try:
                with pq.ParquetFile(stream, pre_buffer=False, buffer_size=_READ_BYTES) as parquet:
                    yield parquet
            except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
                # Arrow also raises OSError for malformed content, but without errno.
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                problem = str(error).splitlines()[0].rstrip(".")
                raise SourceError(f"{name}: not a complete Parquet file: {problem}") from error


def _holds_images(field: pa.Field[Any]) -> bool:
    kind = field.type
    if pa.types.is_struct(kind):
        position = kind.get_field_index("bytes")
        return position >= 0 and is_binary(kind.field(position).type)
    # Some writers do not mark text columns as text.
    return is_binary(kind) and field.name.lower() not in URL_COLUMNS


def _images(values: pa.Array) -> tuple[pa.Array, pa.Array | None]:
    """The images, and their paths if the column has them."""
    if not pa.types.is_struct(values.type):
        return pc.cast(values, pa.binary()), None
    images = pc.cast(pc.struct_field(values, "bytes"), pa.binary())
    if values.type.get_field_index("path") < 0:
        return images, None
    return images, as_text(pc.struct_field(values, "path"))
