"""Parts in an output: created once under their own name, adopted if another writer came first.

A retry replaces the part of an earlier generation, and only the very one that it has read.
"""

from __future__ import annotations

import pyarrow as pa

from clipfleet.crash_points import NO_CRASH_POINTS, CrashPoint, CrashPoints
from clipfleet.errors import OutputConflictError, OutputDamagedError, OutputUnavailableError
from clipfleet.outputs import Output
from clipfleet.part_files import PartFiles
from clipfleet.part_files.parquet import ParquetParts
from clipfleet.parts import PartCounts, PartIdentity
from clipfleet_worker.sinks import OlderPart


class PartSink:
    """See `clipfleet_worker.sinks.Sink`."""

    def __init__(
        self,
        output: Output,
        files: PartFiles | None = None,
        *,
        crash_points: CrashPoints = NO_CRASH_POINTS,
    ) -> None:
        self._crash_points = crash_points
        self._output = output
        self._files = files or ParquetParts()

    def find(self, identity: PartIdentity) -> PartCounts | None:
        """See the protocol. Of a Parquet part it reads only the footer."""
        name = self._files.name(identity.chunk_id)
        try:
            with self._files.open(self._output, name) as part:
                found, counts = part.footer()
        except FileNotFoundError:
            return None
        except (OutputDamagedError, ValueError) as error:
            raise OutputConflictError(f"{self._output.uri}/{name} is not a part: {error}") from error
        self._require_ours(found, identity)
        return counts if found.generation == identity.generation else None

    def older(self, identity: PartIdentity) -> OlderPart | None:
        """See the protocol."""
        name = self._files.name(identity.chunk_id)
        version = self._output.version(name)  # before it is read: what comes in between is noticed
        if version is None:
            return None
        if self.find(identity) is not None:
            raise OutputUnavailableError(f"{self._output.uri}/{name} was written meanwhile")
        with self._files.open(self._output, name) as part:
            return OlderPart(pa.Table.from_batches(part.batches(), part.schema), version)

    def write(
        self,
        identity: PartIdentity,
        rows: pa.Table,
        counts: PartCounts,
        *,
        over: OlderPart | None = None,
        token: str = "",
    ) -> PartCounts:
        """See the protocol."""
        name = self._files.name(identity.chunk_id)
        with self._output.scratch() as path:
            self._files.write(self._output, path, identity, rows, counts)
            self._crash_points.reach(CrashPoint.MID_WRITE)
            if over is None:
                is_in_place = self._output.publish(path, name)
            else:
                is_in_place = self._output.replace_if(path, name, over.version)
            if is_in_place:
                return counts
        found = self.find(identity)
        if found is None:  # another generation wrote it, or it was removed: to be looked at anew
            raise OutputUnavailableError(f"{self._output.uri}/{name}: was replaced or removed meanwhile")
        return found

    def _require_ours(self, found: PartIdentity, identity: PartIdentity) -> None:
        where = f"{self._output.uri}/{self._files.name(identity.chunk_id)}"
        found.require(identity.job_id, identity.chunk_id, where)
        if found.generation > identity.generation:
            # No conflict: the job was retried while this worker slept, and goes on without it.
            raise OutputUnavailableError(f"{where} is of generation {found.generation} by now")
