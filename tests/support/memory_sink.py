"""A double of the worker: a sink in memory. No I/O here."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pyarrow as pa

from clipfleet.contract.parts import PartCounts, PartIdentity
from clipfleet.errors import OutputConflictError, OutputUnavailableError
from clipfleet.outputs.folder import Confirm, unconditionally
from clipfleet_worker.sinks import OlderPart


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """A part as it was written."""

    identity: PartIdentity
    rows: pa.Table
    counts: PartCounts


class MemorySink:
    """See `clipfleet_worker.sinks.Sink`; what was written is in `parts`, by chunk."""

    def __init__(self) -> None:
        self.parts: dict[int, MemoryPart] = {}
        self._lock = threading.Lock()

    def find(self, identity: PartIdentity) -> PartCounts | None:
        with self._lock:
            part = self._part(identity)
        return part.counts if part is not None and part.identity == identity else None

    def older(self, identity: PartIdentity) -> OlderPart | None:
        with self._lock:
            part = self._part(identity)
        if part is None or part.identity == identity:
            return None
        return OlderPart(part.rows, str(part.identity.generation))

    def stored(self, identity: PartIdentity) -> pa.Table:
        with self._lock:
            part = self._part(identity)
        if part is None or part.identity != identity:
            raise OutputUnavailableError(f"chunk {identity.chunk_id} was removed meanwhile")
        return part.rows.drop_columns([name for name in ("embedding",) if name in part.rows.column_names])

    def write(
        self,
        identity: PartIdentity,
        rows: pa.Table,
        counts: PartCounts,
        *,
        over: OlderPart | None = None,
        token: str = "",
        confirm: Confirm = unconditionally,
    ) -> PartCounts:
        confirm()
        with self._lock:
            part = self._part(identity)
            if part is not None and part.identity == identity:
                return part.counts
            if (over and over.version) != (str(part.identity.generation) if part else None):
                raise OutputUnavailableError(f"chunk {identity.chunk_id} was written meanwhile")
            self.parts[identity.chunk_id] = MemoryPart(identity, rows, counts)
        return counts

    def _part(self, identity: PartIdentity) -> MemoryPart | None:
        part = self.parts.get(identity.chunk_id)
        if part is not None and part.identity.job_id != identity.job_id:
            raise OutputConflictError(f"chunk {identity.chunk_id} belongs to {part.identity}")
        if part is not None and part.identity.generation > identity.generation:
            raise OutputUnavailableError(f"chunk {identity.chunk_id} was retried meanwhile")
        return part
