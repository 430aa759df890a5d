"""Reads the rows and embeddings of a store at one version in ranges, for jobs that label them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa

from clipfleet.contract.jobs import MAX_CHUNK_SIZE, StoreVersion
from clipfleet.contract.parts import PartRange
from clipfleet.errors import (
    OutputConflictError,
    OutputDamagedError,
    OutputRefusedError,
    OutputUnavailableError,
    OutputUnreachableError,
    UsageError,
)
from clipfleet.results.store_rows import as_rows, dimension_of, row_schema, stored_columns
from clipfleet.results.vector_ranges import (
    KEPT_COLUMNS,
    VECTORS_COLUMN,
    Alive,
    checked,
    grouped,
    require_bounded,
)
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.extra import require_store
from clipfleet.store.place import StorePlace
from clipfleet.store.rows import PRESENT

_PART_ROWS = 256  # of a part, of which a store has none: consecutive rows, those of gone items included
_GONE = "gone_at"


class StoreRanges:
    """See `clipfleet.results.vector_ranges.VectorRanges`. Rows whose items are gone are left out."""

    def __init__(
        self,
        place: StorePlace,
        vectors: StoreVersion,
        extra_columns: Sequence[str],
        most_rows: int = MAX_CHUNK_SIZE,
        *,
        admit: Callable[[str], object] = lambda uri: None,
    ) -> None:
        """Nothing is read yet.

        Args:
            place: of the store.
            vectors: as the new job names them.
            extra_columns: of the source, as the store has them.
            most_rows: of a range that is read.
            admit: called with the URI of the dataset before it is opened; may raise.
        """
        self.uri = f"{place.uri}@{vectors.version}"
        self._place = place
        self._vectors = vectors
        self._columns = [*KEPT_COLUMNS, *extra_columns]
        self._most_rows = most_rows
        self._admit = admit
        self._opened: VectorDataset | None = None

    def ranges(self, most_rows: int) -> Iterator[PartRange]:
        return grouped(self._rows_of_parts(), most_rows)

    def require_all(self) -> None:
        self._open()

    def read(
        self, part_range: PartRange, *, with_vectors: bool = True, alive: Alive = lambda: None
    ) -> pa.Table:
        require_bounded(part_range, self._most_rows, self.uri, may_have_empty_parts=True)
        names = [*self._columns, VECTORS_COLUMN] if with_vectors else self._columns
        first = part_range.first_part * _PART_ROWS
        end = first + part_range.parts * _PART_ROWS
        tables, left = [], part_range.rows
        dataset = self._dataset()
        schema = self._schema(dataset, names)
        stored = [*stored_columns(dataset, schema), _GONE]
        with self._reading():
            for start in range(first, end, MAX_CHUNK_SIZE):
                rows = dataset.slice(start, min(MAX_CHUNK_SIZE, end - start), stored)
                alive()
                tables.append(rows if rows[_GONE].null_count == len(rows) else _present(rows))
                left -= tables[-1].num_rows
                if left <= 0:  # fewer than none are refused below
                    break
        rows = pa.concat_tables(tables).combine_chunks()
        fingerprint = self._vectors.model_fingerprint
        found = [as_rows(one, part_range.item_index, schema, fingerprint) for one in rows.to_batches()]
        return checked(pa.Table.from_batches(found, schema), part_range, self.uri)

    def _schema(self, dataset: VectorDataset, names: Sequence[str]) -> pa.Schema:
        whole = row_schema(dataset)
        if missing := [name for name in names if name not in whole.names]:
            raise OutputDamagedError(f"{self.uri}: has no column {missing[0]!r}")
        return pa.schema([whole.field(name) for name in names])

    def _rows_of_parts(self) -> list[int]:
        import numpy as np

        dataset = self._dataset()
        with self._reading():
            total = dataset.count()
            starts = range(0, total, _PART_ROWS)
            if dataset.count(PRESENT) == total:
                return [min(_PART_ROWS, total - start) for start in starts]
            counts, offset = np.zeros(len(starts), np.int64), 0
            for batch in dataset.batches([_GONE]):
                present = batch[_GONE].is_null().to_numpy(zero_copy_only=False)
                np.add.at(counts, (offset + np.flatnonzero(present)) // _PART_ROWS, 1)
                offset += batch.num_rows
            return [*map(int, counts)]

    def _dataset(self) -> VectorDataset:
        if self._opened is None:
            self._opened = self._open()
        return self._opened

    def _open(self) -> VectorDataset:
        """Open the dataset. Raises like `VectorRanges.read`."""
        self._require_same_store()
        uri, version = self._place.dataset_uri(self._vectors.model_fingerprint), self._vectors.version
        self._admit(uri)
        try:
            dataset = VectorDataset.open(uri, version)
        except (FileNotFoundError, UsageError) as error:
            if self._is_gone():
                raise self._gone() from error
            raise OutputUnavailableError(f"{self.uri}: cannot be read now ({error})") from error
        if dimension_of(dataset) != self._vectors.dimension:
            raise OutputConflictError(
                f"{self.uri}: vectors of length {dimension_of(dataset)} instead of {self._vectors.dimension}"
            )
        return dataset

    def _require_same_store(self) -> None:
        try:
            require_store()
        except UsageError as error:
            raise OutputRefusedError(str(error)) from error
        store = self._place.read_if_there()
        if store is None:
            raise OutputUnreachableError(
                f"{self._place.uri}: the store with the vectors is missing; is the folder mounted on this "
                "machine?"
            )
        if store.store_id != self._vectors.store_id:
            raise OutputConflictError(
                f"{self._place.uri} holds another store by now, not the one whose vectors are to be labelled"
            )

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Report files that are missing because the version was removed as such."""
        try:
            yield
        except (OutputUnavailableError, FileNotFoundError) as error:
            self._opened = None  # perhaps its credentials have expired
            if self._is_gone():
                raise self._gone() from error
            if isinstance(error, FileNotFoundError):
                raise OutputDamagedError(f"{self.uri} is damaged: {error} is missing") from error
            raise

    def _is_gone(self) -> bool:
        """Whether the version was removed for good; a disk that is not mounted comes back."""
        if self._place.read_if_there() is None:
            return False
        try:
            newest = VectorDataset.open(self._place.dataset_uri(self._vectors.model_fingerprint))
            return self._vectors.version not in newest.times()
        except FileNotFoundError:
            return True
        except UsageError:  # no credentials
            return False

    def _gone(self) -> OutputConflictError:
        return OutputConflictError(
            f"{self.uri}: this version was removed (`clipfleet store vacuum`), and its vectors with it: "
            "submit the job again, for a version that `clipfleet store log` lists"
        )


def _present(rows: pa.Table) -> pa.Table:
    return rows.filter(rows[_GONE].is_null())
