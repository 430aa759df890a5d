"""The rows of a store at one version, as those of a finished output. Read-only, in bounded memory.

A version never changes, so all reads agree, whatever is committed meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

import pyarrow as pa

from clipfleet.contract.jobs import Job, SourceDescription, Task
from clipfleet.contract.parts import ItemStatus, part_schema
from clipfleet.errors import OutputDamagedError
from clipfleet.results.rows import RowStream
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.extra import require_store
from clipfleet.store.place import StoreFile, StorePlace
from clipfleet.store.rows import OWN_COLUMNS, PRESENT, VECTOR_COLUMN
from clipfleet.store.versions import current_dataset

SOURCE_KIND = "store"


class StoreRows:
    """See `clipfleet.results.rows.RowReader`. Rows whose items are gone are left out; all others are ok.

    `item_index` is the position of a row at this version: in another version the item may have another one.
    The source's own columns have the names that the store has for them.
    """

    def __init__(self, place: StorePlace, store: StoreFile, dataset: VectorDataset) -> None:
        """Take a dataset of a store, at the version that is read."""
        self.place = place
        self.store = store
        self.dataset = dataset
        self.uri = f"{place.uri}@{dataset.version}"

    @property
    def version(self) -> int:
        """Of the dataset."""
        return self.dataset.version

    @property
    def fingerprint(self) -> str:
        """Of the vectors, in any precision of the model."""
        assert self.store.current.fingerprint is not None  # noqa: S101 - there is a dataset
        return self.store.current.fingerprint

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return dimension_of(self.dataset)

    @cached_property
    def schema(self) -> pa.Schema:
        """Of the rows with all columns."""
        return row_schema(self.dataset)

    @cached_property
    def where(self) -> str | None:
        """The condition of the rows that are read; None: none is gone, and a read needs no condition."""
        return None if self.count == self.dataset.count() else PRESENT

    @cached_property
    def count(self) -> int:
        """Number of rows."""
        return self.dataset.count(PRESENT)

    def job(self) -> Job:
        """What made the vectors, as one embed job: no job of this id was ever submitted."""
        made_by = self.store.current
        return Job(
            job_id=f"store-{self.store.store_id}", task=Task.EMBED, model=made_by.model,
            precision=made_by.precision, decode=made_by.decode, exif=made_by.exif,
            source=SourceDescription(
                kind=SOURCE_KIND, uri=self.place.uri, extra_columns=self._own_columns,
                options={"version": str(self.version), "fingerprint": self.fingerprint},
            ),
            output=self.place.uri, created_at=self.store.created_at,
        )  # fmt: skip

    @property
    def _own_columns(self) -> tuple[str, ...]:
        return tuple(name for name in self.dataset.schema.names if name not in OWN_COLUMNS)

    def label_sets(self) -> None:
        """None: a store has no labels."""

    def finished_at(self) -> datetime:
        """When the version was committed."""
        return self.dataset.committed_at

    def early_end(self) -> None:
        """None: a version is complete."""

    def read(self, columns: Sequence[str] | None = None) -> RowStream:
        """Read all rows, in the order of their positions."""
        schema = self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])
        return RowStream(schema, self._batches(schema))

    def row_at(self, index: int) -> pa.RecordBatch | None:
        """The row at a position; where rows are gone, those before it are counted."""
        if not 0 <= index < self.count:
            return None
        offset = index if self.where is None else self._offset_of(index)
        rows = self.dataset.slice(offset, 1, stored_columns(self.dataset, self.schema)).combine_chunks()
        return as_rows(rows.to_batches()[0], index, self.schema, self.fingerprint)

    def failure_examples(self) -> dict[str, str]:
        """None: failed items have no row."""
        return {}

    def _batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        first = 0
        for batch in self.dataset.batches(stored_columns(self.dataset, schema), where=self.where):
            yield as_rows(batch, first, schema, self.fingerprint)
            first += batch.num_rows

    def _offset_of(self, index: int) -> int:
        """Where the row of a position is among all rows of the dataset."""
        seen = offset = 0
        for batch in self.dataset.batches(["gone_at"]):
            present = batch["gone_at"].is_null()
            here = present.true_count
            if seen + here > index:
                places = pa.arange(offset, offset + batch.num_rows).filter(present)
                return int(places[index - seen].as_py())
            seen, offset = seen + here, offset + batch.num_rows
        raise OutputDamagedError(f"{self.uri}: has fewer rows than it counted")


def dimension_of(dataset: VectorDataset) -> int:
    """Length of a vector."""
    return int(dataset.schema.field(VECTOR_COLUMN).type.list_size)


def row_schema(dataset: VectorDataset) -> pa.Schema:
    """Schema of the rows of a dataset, as those of an output."""
    own = [field for field in dataset.schema if field.name not in OWN_COLUMNS]
    return part_schema(dimension_of(dataset), own)


def stored_columns(dataset: VectorDataset, schema: pa.Schema) -> list[str]:
    """The columns of `row_schema` that a dataset has; at least a small one, for the number of rows."""
    there = dataset.schema.names
    return [name for name in schema.names if name in there] or ["digest"]


def as_rows(batch: pa.RecordBatch, first: int, schema: pa.Schema, fingerprint: str) -> pa.RecordBatch:
    """Rows as a dataset has them, as rows of an output.

    Args:
        batch: with the columns of the dataset that the schema names.
        first: `item_index` of the first row.
        schema: columns of `row_schema`.
        fingerprint: of the model.
    """
    constants = {"status": ItemStatus.OK.value, "model_fingerprint": fingerprint}

    def column(field: pa.Field[Any]) -> pa.Array:
        if field.name == "item_index":
            return pa.arange(first, first + batch.num_rows)
        if field.name in constants:
            return pa.repeat(pa.scalar(constants[field.name], field.type), batch.num_rows)
        if field.name in batch.schema.names:
            return batch.column(field.name)
        return pa.nulls(batch.num_rows, field.type)

    return pa.RecordBatch.from_arrays([column(field) for field in schema], schema=schema)


def store_rows(place: StorePlace, as_of: str | None = None) -> StoreRows:
    """Open a store to read it.

    Args:
        place: of the store.
        as_of: a version of its current dataset, see `clipfleet.store.versions.version_at`; None: the newest.

    Raises:
        UsageError: there is no store, or no such version (any more), or Lance is not installed.
        ResultsNotReadyError: nothing has been embedded yet.
        OutputUnavailableError: it cannot be read.
    """
    require_store()
    return StoreRows(place, *current_dataset(place, as_of))
