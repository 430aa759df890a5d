"""Reads the rows of a job back, whatever its output and the format of its parts. Reads only.

Works while a job still runs: what is there is read. A few parts are held at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.jobs import Job
from clipfleet.errors import OutputConflictError, UsageError
from clipfleet.ledger.values import EarlyEnd

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class RowStream:
    """Rows in the order of the source, all in one schema. Can be read once."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]


class RowReader(Protocol):
    """Where the rows of one job are kept."""

    uri: str  # name of the output, for messages

    def job(self) -> Job | None:
        """The job that the rows are of, as far as this version of clipfleet understands it."""

    def finished_at(self) -> datetime | None:
        """When the job was finished; None if it still runs, was cancelled or failed: rows may be missing."""

    def early_end(self) -> EarlyEnd | None:
        """How the job ended before it was finished; None if it did not, or if only the ledger could tell."""

    def read(self, columns: Sequence[str] | None = None) -> RowStream:
        """The rows that are there now, with all columns or the named ones; may be called again.

        Raises:
            ResultsNotReadyError: at once, where there is no row yet.
            OutputConflictError: while iterating, where there are vectors of different lengths.
            OutputUnavailableError: while iterating, where rows cannot be read; `OutputUnreachableError`: they
                are damaged.
        """

    def failure_examples(self) -> dict[str, str]:
        """One detail for each error code, as far as that is told quickly."""


def rows(reader: RowReader) -> Iterator[dict[str, Any]]:
    """All rows so far as plain dicts; `embedding` is a list of floats or None. Raises like `read`."""
    return (row for batch in reader.read().batches for row in batch.to_pylist())


def vectors(reader: RowReader) -> tuple[np.ndarray, np.ndarray]:
    """All vectors so far, in memory: `item_index` (n, int64) and the vectors (n, dimension; float16).

    Rows without a vector are left out, so n may be smaller than the number of items; it is 0, like the
    dimension, for a job that made none.

    Raises:
        UsageError: numpy is not installed. Else see `RowReader.read`.
    """
    try:
        import numpy as np
    except ImportError:  # the producer's side does not install it
        raise UsageError("vectors need numpy: pip install numpy") from None
    indexes, values = bytearray(), bytearray()  # they grow in place: no second copy of everything at the end
    dimension = 0
    for present in batches_with_vectors(reader.read()):
        dimension = present.schema.field("embedding").type.list_size
        indexes += present.column("item_index").to_numpy().tobytes()
        values += present.column("embedding").flatten().to_numpy().tobytes()
    matrix = (
        np.frombuffer(values, np.float16).reshape(-1, dimension)
        if dimension
        else np.empty((0, 0), np.float16)
    )
    return np.frombuffer(indexes, np.int64), matrix


def batches_with_vectors(stored: RowStream) -> Iterator[pa.RecordBatch]:
    """The rows that have a vector, without the empty batches; the length of `embedding` is the same in all.

    Raises:
        OutputConflictError: vectors differ in length. Else see `RowReader.read`.
    """
    dimension = 0
    for batch in stored.batches:
        present = batch.filter(pc.is_valid(batch.column("embedding")))
        if present.num_rows:
            dimension = _dimension(present, dimension)
            yield _with_fixed_length(present, dimension)


def _dimension(present: pa.RecordBatch, before: int) -> int:
    """The one length of these vectors and the ones before (0: there were none)."""
    lengths = pc.unique(pc.list_value_length(present.column("embedding"))).to_pylist()
    if len({before, *lengths} - {0}) > 1:
        first = present.column("item_index")[0].as_py()
        raise OutputConflictError(
            f"vectors from item {first} on have another length than those before: made with another model?"
        )
    return lengths[0] if lengths else before


def _with_fixed_length(present: pa.RecordBatch, dimension: int) -> pa.RecordBatch:
    position = present.schema.get_field_index("embedding")
    kind = pa.list_(pa.float16(), dimension)
    return present.set_column(position, pa.field("embedding", kind), present.column(position).cast(kind))
