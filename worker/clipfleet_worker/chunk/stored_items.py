"""The rows of an earlier job whose vectors a chunk labels again: which of them are ok, and their features.

Pure functions on columns; an object per item is made only for items that fail now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.jobs import ErrorCode, ItemError, StoredVectors, StoreVersion
from clipfleet.contract.parts import ItemStatus
from clipfleet.errors import OutputDamagedError
from clipfleet.results.vector_ranges import VECTORS_COLUMN
from clipfleet_worker.outcomes import Features

_ROUNDING = 4e-6  # of the length of a vector that was normalised in float32
_NO_DIRECTION = ItemError(
    ErrorCode.CRASHED, "the stored vector has no direction: its numbers are not finite, or all 0"
)


@dataclass(frozen=True)
class StoredItems:
    """Rows as the earlier job has them, and what they become."""

    vectors: StoredVectors | StoreVersion  # what the job expects
    rows: pa.Table  # without the columns of errors; `embedding` is of the earlier job's type
    features: Features  # of the rows that are still ok
    error_codes: pa.Array
    error_details: pa.Array

    @cached_property
    def ok(self) -> pa.Array:
        """Whether each row is ok."""
        return pc.is_null(self.error_codes)

    @property
    def fingerprints(self) -> list[str | None]:
        """Those of the rows that are ok, without repetitions."""
        found: list[str | None] = pc.unique(self.rows["model_fingerprint"].filter(self.ok)).to_pylist()
        return found

    def failing(self, errors: Mapping[int, ItemError]) -> StoredItems:
        """The same rows, of which those at these positions fail; earlier errors stay."""
        were_ok = np.zeros(self.rows.num_rows, bool)
        were_ok[self.features.positions] = True
        fresh = {position: error for position, error in sorted(errors.items()) if were_ok[position]}
        if not fresh:
            return self
        fails = np.zeros(self.rows.num_rows, bool)
        fails[list(fresh)] = True
        stays = ~fails[self.features.positions]
        mask = pa.array(fails)
        return replace(
            self,
            features=replace(
                self.features,
                positions=self.features.positions[stays],
                values=self.features.values[stays],
            ),
            error_codes=pc.replace_with_mask(
                self.error_codes, mask, pa.array([one.code.value for one in fresh.values()], pa.string())
            ),
            error_details=pc.replace_with_mask(
                self.error_details, mask, pa.array([one.detail for one in fresh.values()], pa.string())
            ),
        )

    def all_failing(self, error: ItemError) -> StoredItems:
        """The same rows, none of which is ok; earlier errors stay."""
        return self.failing(dict.fromkeys(self.features.positions.tolist(), error))


def stored_items(rows: pa.Table, vectors: StoredVectors | StoreVersion) -> StoredItems:
    """Read rows of an earlier job as items. A vector without a direction fails its item.

    Args:
        rows: as `VectorRanges` yields them.
        vectors: what the job expects of them.

    Raises:
        OutputDamagedError: a row that is ok has no vector, or one of another length.
    """
    is_ok = pc.equal(_column(rows, "status"), ItemStatus.OK.value)
    ok: np.ndarray = is_ok.to_numpy(zero_copy_only=False)
    positions, values = np.flatnonzero(ok), _values(rows[VECTORS_COLUMN], ok, vectors)
    lengths = np.sqrt(np.einsum("nd,nd->n", values, values))
    lengths[np.abs(lengths - 1) < _ROUNDING] = 1  # as the model gave it: float32 stays what it was
    with np.errstate(divide="ignore", invalid="ignore"):
        values /= lengths[:, None]
    found = StoredItems(
        vectors,
        rows.drop_columns(["error_code", "error_detail"]),
        Features(rows.num_rows, positions, values),
        *_errors(rows),
    )
    has_direction = np.isfinite(lengths) & (lengths > 0)
    return found.failing(dict.fromkeys(positions[~has_direction].tolist(), _NO_DIRECTION))


def given_up_items(rows: pa.Table, vectors: StoredVectors | StoreVersion, error: ItemError) -> StoredItems:
    """Rows of an earlier job that were read without their vectors: none is ok; earlier errors stay."""
    positions = np.flatnonzero(pc.equal(_column(rows, "status"), ItemStatus.OK.value))
    return StoredItems(
        vectors,
        rows.drop_columns(["error_code", "error_detail"]),
        Features(rows.num_rows, positions, np.empty((len(positions), 0), np.float32)),
        *_errors(rows),
    ).all_failing(error)


def _errors(rows: pa.Table) -> tuple[pa.Array, pa.Array]:
    """Codes and details; a code is null exactly where the row is ok, whatever another program has written."""
    is_ok = pc.equal(_column(rows, "status"), ItemStatus.OK.value)
    code = pc.fill_null(_column(rows, "error_code"), ErrorCode.CRASHED.value)
    return pc.if_else(is_ok, None, code), pc.if_else(is_ok, None, _column(rows, "error_detail"))


def _values(column: pa.ChunkedArray, ok: np.ndarray, vectors: StoredVectors | StoreVersion) -> np.ndarray:
    """The vectors of the rows that are ok, float32 (n, d), in an array of their own."""
    import torch
    from torch.utils.dlpack import from_dlpack

    where = f"{vectors.uri}: {vectors.said}"
    values = np.empty((np.count_nonzero(ok), vectors.dimension), np.float32)
    if not len(values):
        return values
    is_list = pa.types.is_fixed_size_list(column.type) and pa.types.is_floating(column.type.value_type)
    if not is_list or column.type.list_size != vectors.dimension:
        raise OutputDamagedError(f"{where} has vectors of type {column.type}, not of {vectors.dimension}")
    row = start = 0
    for chunk in column.chunks:
        is_kept = ok[row : row + len(chunk)]
        kept = chunk if is_kept.all() else chunk.filter(pa.array(is_kept))
        if kept.null_count:
            raise OutputDamagedError(f"{where} has rows that are ok and have no vector")
        numbers = kept.flatten()
        # From float16 torch takes a tenth of numpy's time.
        if numbers.null_count:
            given = torch.from_numpy(numbers.to_numpy(zero_copy_only=False))
        else:
            given = from_dlpack(numbers)
        torch.from_numpy(values[start : start + len(kept)]).copy_(given.view(-1, vectors.dimension))
        row, start = row + len(chunk), start + len(kept)
    return values


def _column(rows: pa.Table, name: str) -> pa.Array:
    """A column of a table whose chunks are combined."""
    column = rows[name]
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
