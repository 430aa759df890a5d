"""Parquet parts: identity and counts are in the footer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipfleet.contract.jobs import PartFormat
from clipfleet.contract.parts import PartCounts, PartIdentity, part_footer, read_part_footer
from clipfleet.contract.versions import SCHEMA_VERSION
from clipfleet.outputs import Output
from clipfleet.outputs.folder import Confirm, unconditionally
from clipfleet.outputs.objects import layout_of
from clipfleet.outputs.parquet import footer, open_parquet, parquet_errors
from clipfleet.outputs.scratch import output_errors

if TYPE_CHECKING:
    from clipfleet.outputs import Output


_BATCH_ROWS = 4096
# Unique values, like fractions: for 512 rows a dictionary costs a third of the time and a sixth of the file.
_UNIQUE_COLUMNS = ("item_index", "item_id", "uri", "embedding", "content_hash")
# Never filtered by range: for 512 rows with vectors of length 512, statistics cost a fifth of the time.
_UNORDERED_COLUMNS = ("embedding", "content_hash")


class ParquetParts:
    """See `clipfleet.parts.PartFiles`."""

    readers = 8  # a part of 4,096 rows with vectors of length 512 is 5 MB
    footer_readers = 16

    def __init__(self, schema_version: int = SCHEMA_VERSION) -> None:
        self._schema_version = schema_version

    def name(self, chunk_id: int) -> str:
        return layout_of(self._schema_version).part(chunk_id, PartFormat.PARQUET)

    def write(
        self,
        output: Output,
        path: Path,
        identity: PartIdentity,
        rows: pa.Table,
        counts: PartCounts,
        *,
        confirm: Confirm = unconditionally,
    ) -> None:
        """Write a self-contained file."""
        stamped = rows.replace_schema_metadata(part_footer(identity, counts, self._schema_version))
        with output_errors(path):
            pq.write_table(
                stamped,
                path,
                compression="zstd",
                use_dictionary=_leaves_but(
                    stamped.schema, [*_UNIQUE_COLUMNS, *_of_fractions(stamped.schema)]
                ),
                write_statistics=_leaves_but(stamped.schema, _UNORDERED_COLUMNS),
            )

    @contextmanager
    def open(self, output: Output, name: str, *, most_bytes: int | None = None) -> Iterator[OpenParquetPart]:
        """Open a part, reading only the footer, whatever its size."""
        with parquet_errors(output, name):
            file = open_parquet(output, name)
            try:
                yield OpenParquetPart(file)
            finally:
                file.close(force=True)


class OpenParquetPart:
    """See `clipfleet.parts.OpenPart`."""

    def __init__(self, file: pq.ParquetFile) -> None:
        self._file = file
        self.schema = file.schema_arrow.remove_metadata()
        self.num_rows = int(file.metadata.num_rows)
        self.beside: Sequence[str] = ()

    def footer(self) -> tuple[PartIdentity, PartCounts]:
        return read_part_footer(footer(self._file))

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        for batch in self._file.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False):
            batch.validate(full=True)  # a damaged page may decompress to invalid text
            yield batch


def _leaves_but(schema: pa.Schema, names: Sequence[str]) -> list[str]:
    """Parquet paths of all columns but these."""
    return [path for field in schema if field.name not in names for path in _leaves(field)]


def _of_fractions(schema: pa.Schema) -> Iterator[str]:
    """The columns of scores, and others with fractions or lists of them."""
    for field in schema:
        kind = field.type.value_type if pa.types.is_list(field.type) else field.type
        if pa.types.is_floating(kind):
            yield field.name


def _leaves(field: pa.Field[Any], above: str = "") -> Iterator[str]:
    path, kind = above + field.name, field.type
    if pa.types.is_struct(kind):
        for child in kind:
            yield from _leaves(child, f"{path}.")
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _leaves(kind.value_field.with_name("element"), f"{path}.list.")
    elif pa.types.is_map(kind):
        yield from _leaves(kind.key_field.with_name("key"), f"{path}.key_value.")
        yield from _leaves(kind.item_field.with_name("value"), f"{path}.key_value.")
    else:
        yield path
