"""Reads the rows of a job, from any kind of output and format. Read-only; also works while the job runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.columns import VectorType
from clipfleet.contract.jobs import Job, Task
from clipfleet.contract.parts import embedding_field
from clipfleet.errors import OutputConflictError, UsageError
from clipfleet.labels.extra import require_numpy
from clipfleet.ledger.status import EarlyEnd

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class RowStream:
    """Rows in source order, all in one schema. Readable once."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]


class RowReader(Protocol):
    """Reader of the rows of one job."""

    uri: str  # of the output, for messages

    def job(self) -> Job | None:
        """The job of the rows; None if unknown, or unreadable to this version."""

    def label_sets(self) -> Sequence[Mapping[str, Any]] | None:
        """The label sets in full, presets with their labels and templates; None: not stored (yet)."""

    def finished_at(self) -> datetime | None:
        """When the job finished; None if it runs, was cancelled or failed, so that rows may be missing."""

    def early_end(self) -> EarlyEnd | None:
        """How the job ended early; None if it did not, or if only an absent ledger knows."""

    def read(self, columns: Sequence[str] | None = None) -> RowStream:
        """Read the rows written so far, with all columns or the named ones. Repeatable.

        Raises:
            ResultsNotReadyError: at once: there are no rows yet.
            OutputConflictError: while iterating: vectors differ in length.
            OutputUnavailableError: while iterating: rows are unreadable; `OutputUnreachableError`: damaged.
        """

    def row_at(self, index: int) -> pa.RecordBatch | None:
        """The row with this `item_index`, with all columns; None if there is none yet. Reads few others.

        Raises like `read`.
        """

    def failure_examples(self) -> dict[str, str]:
        """One example detail per error code. Best effort, fast."""


def require_of_images(job: Job, uri: str) -> None:
    """Refuse the vectors of texts where those of images are meant.

    Raises:
        UsageError: the job embeds texts.
    """
    if job.task is Task.EMBED_TEXT:
        raise UsageError(f"{uri}: holds vectors of texts: embed the images with `clipfleet embed`")


def rows(reader: RowReader) -> Iterator[dict[str, Any]]:
    """Iterate over the rows so far as dicts; `embedding` is a list of floats or None. Raises like `read`."""
    return (row for batch in reader.read().batches for row in batch.to_pylist())


def vectors(reader: RowReader) -> tuple[np.ndarray, np.ndarray]:
    """Load the embeddings so far: `item_index` (n, int64) and vectors (n, dimension; of the type of the job).

    Rows without an embedding are skipped, so n may be smaller than the number of items. A job without
    embeddings gives n = dimension = 0.

    Raises:
        UsageError: numpy is not installed. Otherwise see `RowReader.read`.
    """
    require_numpy("embeddings")
    import numpy as np

    indexes, values = bytearray(), bytearray()  # they grow in place, which avoids a second copy at the end
    dimension, kind = 0, np.dtype(np.float16)
    for present in batches_with_vectors(reader.read()):
        field = present.schema.field("embedding")
        dimension, kind = field.type.list_size, np.dtype(field.type.value_type.to_pandas_dtype())
        indexes += present.column("item_index").to_numpy().tobytes()
        values += present.column("embedding").flatten().to_numpy().tobytes()
    matrix = np.frombuffer(values, kind).reshape(-1, dimension) if dimension else np.empty((0, 0), kind)
    return np.frombuffer(indexes, np.int64), matrix


def batches_with_vectors(stored: RowStream) -> Iterator[pa.RecordBatch]:
    """Filter the rows with an embedding, all of one length; skip empty batches.

    Raises:
        OutputConflictError: vectors differ in length. Otherwise see `RowReader.read`.
    """
    dimension = 0
    if "embedding" not in stored.schema.names:
        return
    for batch in stored.batches:
        present = batch.filter(pc.is_valid(batch.column("embedding")))
        if present.num_rows:
            dimension = _dimension(present, dimension)
            yield _with_fixed_length(present, dimension)


def _dimension(present: pa.RecordBatch, before: int) -> int:
    """The common length of these vectors and the earlier ones (0: none)."""
    lengths = pc.unique(pc.list_value_length(present.column("embedding"))).to_pylist()
    if len({before, *lengths} - {0}) > 1:
        first = present.column("item_index")[0].as_py()
        raise OutputConflictError(
            f"vectors from item {first} on differ in length from earlier ones: from another model?"
        )
    return lengths[0] if lengths else before


def _with_fixed_length(present: pa.RecordBatch, dimension: int) -> pa.RecordBatch:
    position = present.schema.get_field_index("embedding")
    field = embedding_field(dimension, _vector_type(present))
    return present.set_column(position, field, present.column(position).cast(field.type))


def _vector_type(rows: pa.RecordBatch) -> VectorType:
    """Of a part; in JSON, numbers are of no type."""
    is_single = pa.types.is_float32(rows.schema.field("embedding").type.value_type)
    return VectorType.FLOAT32 if is_single else VectorType.FLOAT16
