"""Vectors and columns of an output or a store in scratch files, where any row is at hand: for work in blocks.

What is read stays on the disk: the memory that it takes is the cache of the operating system.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.parts import ItemStatus
from clipfleet.errors import UsageError
from clipfleet.results.rows import RowReader, batches_with_vectors

_VECTORS = "embedding"


@dataclass(frozen=True, slots=True)
class Spool:
    """The rows that have a vector, in their order. A row is named by its position here."""

    vectors: np.ndarray  # (rows, d), float16 or float32, on the disk
    _file: pa.RecordBatchFileReader
    _starts: np.ndarray  # int64, of each batch; then the number of rows
    _folder: Path

    def __len__(self) -> int:
        return len(self.vectors)

    def batches(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        """The columns beside the vectors, with the position of the first row of each batch."""
        for number, start in enumerate(self._starts[:-1].tolist()):
            yield start, self._batch(number)

    def take(self, positions: np.ndarray) -> pa.Table:
        """The columns of these rows, in this order."""
        order = np.argsort(positions, kind="stable")
        ordered = positions[order]
        numbers = np.searchsorted(self._starts, ordered, side="right") - 1
        parts = []
        for number in np.unique(numbers).tolist():
            offsets = ordered[numbers == number] - self._starts[number]
            parts.append(self._batch(number).take(pa.array(offsets)))
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return pa.Table.from_batches(parts).take(pa.array(back))

    def _batch(self, number: int) -> pa.RecordBatch:
        return self._file.get_batch(number)

    def scratch(self, name: str) -> Path:
        """Path of a further file, which is removed with this one."""
        return self._folder / name


@contextmanager
def spooled(reader: RowReader, columns: Sequence[str], *, with_vectors: bool = True) -> Iterator[Spool]:
    """Copy the rows that have a vector into scratch files, which are removed at the end.

    Args:
        reader: of an output or a store.
        columns: beside the vectors.
        with_vectors: else all rows that are ok are copied, and their vectors, if there are any, are not.

    Raises:
        UsageError: there is no such row, or the disk of the temporary files is full. Otherwise see
            `RowReader.read`.
    """
    with tempfile.TemporaryDirectory(prefix="clipfleet-") as name:
        folder = Path(name)
        try:
            yield _written(reader, columns, folder, with_vectors=with_vectors)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise UsageError(
                f"{folder.parent}: no space left for temporary files, which hold a copy of the vectors: set "
                "TMPDIR to a larger disk"
            ) from error


def _written(reader: RowReader, columns: Sequence[str], folder: Path, *, with_vectors: bool) -> Spool:
    starts, kind = [0], pa.list_(pa.float16(), 0)
    writer: pa.RecordBatchFileWriter | None = None
    with (folder / "vectors").open("wb") as vectors, (folder / "columns").open("wb") as sink:
        for batch in _rows(reader, columns, with_vectors=with_vectors):
            if with_vectors:
                kind = batch.schema.field(_VECTORS).type
                vectors.write(memoryview(batch[_VECTORS].flatten().to_numpy()))
            beside = batch.select([*columns])
            writer = writer or pa.ipc.new_file(sink, beside.schema)
            writer.write_batch(beside)
            starts.append(starts[-1] + batch.num_rows)
        if writer is not None:
            writer.close()
    if writer is None:
        what = "has a vector: embed its source with `clipfleet embed`" if with_vectors else "is ok"
        raise UsageError(f"{reader.uri}: no row {what}")
    shape, number = (starts[-1], kind.list_size), kind.value_type.to_pandas_dtype()
    matrix = (
        np.memmap(folder / "vectors", number, "r", shape=shape) if with_vectors else np.empty(shape, number)
    )
    beside_them = pa.ipc.open_file(pa.memory_map(str(folder / "columns")))
    return Spool(matrix, beside_them, np.array(starts), folder)


def _rows(reader: RowReader, columns: Sequence[str], *, with_vectors: bool) -> Iterator[pa.RecordBatch]:
    if with_vectors:
        yield from batches_with_vectors(reader.read([*columns, _VECTORS]))
        return
    for batch in reader.read([*dict.fromkeys([*columns, "status"])]).batches:
        ok = batch.filter(pc.equal(batch["status"], ItemStatus.OK.value))
        if ok.num_rows:
            yield ok
