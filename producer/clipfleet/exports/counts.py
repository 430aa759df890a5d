"""What an export has written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class ExportCounts:
    """Rows of one export."""

    rows: int  # that are in it
    left_out: int  # that its layout has no place for
    notes: tuple[str, ...] = field(default=())  # lines for people, where something is not as they may expect


class Counted:
    """Batches on their way, and how many rows have passed."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self.rows = 0

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for batch in self._batches:
            self.rows += batch.num_rows
            yield batch
