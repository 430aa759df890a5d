"""The rows of a store at one version as plain Parquet files, for programs that read no Lance.

    rows-00000.parquet   rows whose items the source has; a new file after so many rows

The metadata of each file names the store, its version and the model. `embedding-reader` reads the folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clipfleet.contract.columns import VectorType
from clipfleet.contract.parts import embedding_field
from clipfleet.exports.new_folder import new_folder
from clipfleet.results.formats import row_groups
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.rows import PRESENT, VECTOR_COLUMN

_ROWS_PER_FILE = 1 << 19  # 0.5 GiB of float16 vectors of length 512
_LEFT_OUT = ("gone_at", "digest")  # null in each row, and of no use outside of a store


def export_snapshot(
    dataset: VectorDataset, folder: Path, vector_type: VectorType, facts: dict[str, str]
) -> int:
    """Write the rows into a new or empty folder, in bounded memory.

    Args:
        dataset: at the version to export.
        folder: appears whole or not at all.
        vector_type: of the vectors in the files.
        facts: that the metadata of each file has, beside the version.

    Returns:
        The number of rows. Without any there is one file without rows.

    Raises:
        UsageError: the folder is not empty.
        OutputUnavailableError: the folder cannot be written, or the dataset not be read.
    """
    schema = _schema(dataset, vector_type).with_metadata({**facts, "version": str(dataset.version)})
    batches = dataset.batches(schema.names, where=PRESENT)
    tables = (table.cast(schema) for table in row_groups(batches))
    with new_folder(folder) as scratch:
        return _write(scratch, schema, tables)


def _schema(dataset: VectorDataset, vector_type: VectorType) -> pa.Schema:
    vectors = dataset.schema.field(VECTOR_COLUMN)
    wanted = embedding_field(vectors.type.list_size, vector_type)
    fields = [one for one in dataset.schema if one.name not in _LEFT_OUT]
    return pa.schema([wanted if one.name == VECTOR_COLUMN else one for one in fields])


def _write(folder: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> int:
    rows = files = 0
    left: pa.Table | None = next(tables, schema.empty_table())
    while left is not None:
        path = folder / f"rows-{files:05}.parquet"
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            in_file = 0
            while left is not None and in_file < _ROWS_PER_FILE:
                writer.write_table(left)
                in_file += left.num_rows
                left = next(tables, None)
        rows, files = rows + in_file, files + 1
    return rows
