"""Data frames of pandas, polars, pyarrow and others, as a list of dicts that are made as they are read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from clipfleet.errors import SourceError

_ROWS_AT_ONCE = 1024


class FrameRows:
    """The rows of a data frame, in its order. Reads it anew each time."""

    def __init__(self, frame: Any) -> None:
        try:
            self._table = pa.table(frame)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise SourceError(f"a {type(frame).__name__} that Arrow cannot read: {error}") from error

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._table.to_batches(max_chunksize=_ROWS_AT_ONCE):
            yield from batch.to_pylist()

    def __contains__(self, row: object) -> bool:
        return any(row == own for own in self)


def is_frame(source: object) -> bool:
    """Whether it has rows and columns; iterating over it would then give the columns."""
    return hasattr(source, "__arrow_c_stream__") and hasattr(source, "columns")
