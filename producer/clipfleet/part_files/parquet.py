"""Parquet parts: identity and counts are in the footer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clipfleet import keys
from clipfleet.contract import PartFormat
from clipfleet.outputs import Output
from clipfleet.outputs.folder import output_errors
from clipfleet.outputs.parquet import footer, open_parquet, parquet_errors
from clipfleet.parts import PartCounts, PartIdentity, part_footer, read_part_footer

_BATCH_ROWS = 4096


class ParquetParts:
    """See `clipfleet.part_files.PartFiles`."""

    readers = 8  # a part of 4,096 rows with vectors of length 512 is 5 MB
    footer_readers = 16

    def name(self, chunk_id: int) -> str:
        """See the protocol."""
        return keys.part(chunk_id, PartFormat.PARQUET)

    def write(
        self, output: Output, path: Path, identity: PartIdentity, rows: pa.Table, counts: PartCounts
    ) -> None:
        """See the protocol. The file is complete in itself."""
        stamped = rows.replace_schema_metadata(part_footer(identity, counts))
        with output_errors(path):
            pq.write_table(stamped, path, compression="zstd")

    @contextmanager
    def open(self, output: Output, name: str) -> Iterator[OpenParquetPart]:
        """See the protocol. Reads the footer only."""
        with parquet_errors(output, name):
            file = open_parquet(output, name)
            try:
                yield OpenParquetPart(file)
            finally:
                file.close(force=True)


class OpenParquetPart:
    """See `clipfleet.part_files.OpenPart`."""

    def __init__(self, file: pq.ParquetFile) -> None:
        self._file = file

    @property
    def schema(self) -> pa.Schema:
        """See the protocol."""
        return self._file.schema_arrow.remove_metadata()

    @property
    def num_rows(self) -> int:
        """See the protocol."""
        return int(self._file.metadata.num_rows)

    @property
    def beside(self) -> Sequence[str]:
        """See the protocol: a Parquet part is one object."""
        return ()

    def footer(self) -> tuple[PartIdentity, PartCounts]:
        """See the protocol."""
        return read_part_footer(footer(self._file))

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """See the protocol."""
        for batch in self._file.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False):
            batch.validate(full=True)  # a damaged page may still be unpacked into what is no text
            yield batch
