"""The rows whose vectors are most similar to that of a query, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.errors import UsageError
from clipfleet.results.rows import RowReader, batches_with_vectors
from clipfleet.results.store_rows import StoreRows
from clipfleet.search.nearest import Nearest
from clipfleet.store.conditions import whole
from clipfleet.store.dataset import SIMILARITY, rows_where
from clipfleet.store.extra import require_store

SHOWN_COLUMNS = ("item_id", "uri")
_VECTORS, _POSITION = "embedding", "position in the output"
_MOST_HELD = 64  # pieces of rows that may be among the hits; then those that are not any more are dropped


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a search returns."""

    top: int  # rows, at most
    columns: tuple[str, ...] = SHOWN_COLUMNS
    where: str | None = None  # a condition on columns, in SQL: only these rows are searched

    def require_columns(self, known: Sequence[str]) -> None:
        """Raise UsageError if a column is unknown."""
        for name in self.columns:
            if name not in known:
                raise UsageError(f"the rows have no column {name!r}; their columns are {', '.join(known)}")


@dataclass(frozen=True, slots=True)
class Hits:
    """What a search has found."""

    rows: pa.Table  # best first: `SIMILARITY`, then the columns that were wanted
    is_exact: bool  # else by an index, which may miss some


def search(reader: RowReader, vector: np.ndarray, wanted: Wanted, *, exact: bool = False) -> Hits:
    """Find the rows whose vectors are most similar to that of a query.

    Args:
        reader: of an output or a store.
        vector: of the query, float (d,).
        wanted: what is returned.
        exact: compare all vectors, also if a store has an index.

    Raises:
        UsageError: a column is unknown, the condition is invalid or needs the extra `[store]`, or no row has
            a vector. Otherwise see `RowReader.read`.
    """
    if not isinstance(reader, StoreRows):
        return Hits(_in_rows(reader, vector, wanted), is_exact=True)
    dataset = reader.dataset
    beside = [field for field in dataset.schema if field.name != _VECTORS]
    wanted.require_columns([field.name for field in beside])
    where = wanted.where or reader.where
    if wanted.where is not None and reader.where is not None:
        _columns_of(wanted.where, pa.schema(beside))  # here an error names what the user wrote
        where = f"{whole(wanted.where)} AND {whole(reader.where)}"
    (rows,) = dataset.nearest(vector[None], wanted.top, wanted.columns, where=where, exact=exact)
    return Hits(rows.select([SIMILARITY, *wanted.columns]), is_exact=exact or dataset.index_facts() is None)


def _in_rows(reader: RowReader, vector: np.ndarray, wanted: Wanted) -> pa.Table:
    """Compare a query with all rows. Of equally similar ones the first are taken.

    The vectors are read once, and held a few thousand at a time.
    """
    schema = reader.read().schema
    beside = [name for name in schema.names if name != _VECTORS]
    wanted.require_columns(beside)
    asked = _columns_of(wanted.where, pa.schema([schema.field(name) for name in beside]))
    columns = [*dict.fromkeys([*wanted.columns, *asked])]
    nearest, kept = Nearest(vector[None], wanted.top), _Kept(wanted.columns)
    has_vectors = False
    for batch in batches_with_vectors(reader.read([*columns, _VECTORS])):
        has_vectors = True
        if wanted.where is not None:
            batch = batch.take(rows_where(batch.select(asked), wanted.where))
        kept.add(batch, nearest)
    if not has_vectors:
        raise UsageError(f"{reader.uri}: no row has a vector: embed its source with `clipfleet embed`")
    return kept.table(nearest)


def _columns_of(where: str | None, schema: pa.Schema) -> list[str]:
    """The columns that a condition may name, and perhaps some more.

    Raises:
        UsageError: the condition is invalid, or Lance is not installed.
    """
    if where is None:
        return []
    require_store()
    rows_where(pa.RecordBatch.from_pylist([], schema), where)  # here its error names all columns
    low = where.lower()
    return [name for name in schema.names if name.lower() in low] or schema.names[:1]


class _Kept:
    """The rows that are among the nearest, as they are found."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = [*columns]
        self._rows: list[pa.Table] = []  # with their positions
        self._seen = 0

    def add(self, batch: pa.RecordBatch, nearest: Nearest) -> None:
        vectors, first = batch[_VECTORS], self._seen
        self._seen += batch.num_rows
        nearest.add(first, vectors.flatten().to_numpy().reshape(-1, vectors.type.list_size))
        positions = nearest.positions()[0]
        positions = positions[positions >= first]
        if len(positions) or not self._rows:
            rows = pa.Table.from_batches([batch.select(self._columns).take(pa.array(positions - first))])
            self._rows.append(rows.append_column(_POSITION, pa.array(positions)))
            if len(self._rows) == _MOST_HELD:
                self._rows = [self._best(nearest)]

    def table(self, nearest: Nearest) -> pa.Table:
        """All hits, best first."""
        rows = self._best(nearest)
        scores = np.minimum(nearest.scores()[0, : len(rows)], 1)  # above it by rounding
        return rows.drop_columns([_POSITION]).add_column(0, SIMILARITY, pa.array(scores))

    def _best(self, nearest: Nearest) -> pa.Table:
        rows = pa.concat_tables(self._rows)
        places = pc.index_in(pa.array(nearest.positions()[0]), rows[_POSITION].combine_chunks())
        return rows.take(places.drop_null()).combine_chunks()
