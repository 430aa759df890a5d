"""Parts in an output: created once under their own name, adopted if another writer came first."""

from __future__ import annotations

import pyarrow as pa

from clipfleet.errors import OutputConflictError, OutputDamagedError
from clipfleet.outputs import Output
from clipfleet.part_files import PartFiles
from clipfleet.part_files.parquet import ParquetParts
from clipfleet.parts import PartCounts, PartIdentity


class PartSink:
    """See `clipfleet_worker.sinks.Sink`."""

    def __init__(self, output: Output, files: PartFiles | None = None) -> None:
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
        if found != identity:
            raise OutputConflictError(
                f"{self._output.uri}/{name} belongs to job {found.job_id}, chunk {found.chunk_id}, "
                f"generation {found.generation}"
            )
        return counts

    def write(self, identity: PartIdentity, rows: pa.Table, counts: PartCounts) -> PartCounts:
        """See the protocol."""
        name = self._files.name(identity.chunk_id)
        with self._output.scratch() as path:
            self._files.write(self._output, path, identity, rows, counts)
            if self._output.publish(path, name):
                return counts
        found = self.find(identity)
        if found is None:
            raise OutputConflictError(f"{self._output.uri}/{name} was removed while it was written")
        return found
