"""Source of a job over stored vectors: its batches have a row per chunk, not per item."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from clipfleet.contract.jobs import REDIS_OUTPUT, SourceDescription
from clipfleet.contract.parts import range_batch
from clipfleet.relabel.origin import Origin
from clipfleet.sources.batches import in_batches

KIND = "vectors"


class VectorSource:
    """See `clipfleet.sources.Source`; `count_items` of a batch is the number of its items."""

    def __init__(self, origin: Origin, chunk_size: int) -> None:
        """Nothing is read yet; `chunk_size` is the upper bound of the items of a chunk."""
        self._origin = origin
        self._chunk_size = chunk_size

    @property
    def description(self) -> SourceDescription:
        """Of the earlier job or the store: one that was retried, or filled, since is another source."""
        job, vectors = self._origin.job, self._origin.vectors
        return SourceDescription(
            kind=KIND,
            uri=vectors.uri if vectors.uri != REDIS_OUTPUT else f"{REDIS_OUTPUT}{job.job_id}",
            options=self._origin.identity,
            extra_columns=job.source.extra_columns,
        )

    def batches(self) -> Iterator[pa.RecordBatch]:
        return map(range_batch, in_batches(self._origin.ranges.ranges(self._chunk_size)))
