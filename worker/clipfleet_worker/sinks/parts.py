"""Parquet parts in an output: created once under their own name, adopted if another writer came first."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from clipfleet import keys
from clipfleet.errors import OutputConflictError, OutputDamagedError
from clipfleet.outputs import Output
from clipfleet.outputs.folder import output_errors
from clipfleet.outputs.parquet import footer, open_parquet, parquet_errors
from clipfleet.parts import PartCounts, PartIdentity, part_footer, read_part_footer


class PartSink:
    """See `clipfleet_worker.sinks.Sink`."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def find(self, identity: PartIdentity) -> PartCounts | None:
        """See the protocol. Reads only the footer."""
        name = keys.part(identity.chunk_id)
        try:
            found, counts = read_part_footer(self._read_footer(name))
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

    def _read_footer(self, name: str) -> dict[str, str]:
        with parquet_errors(self._output, name):
            file = open_parquet(self._output, name)
            try:
                return footer(file)
            finally:
                file.close(force=True)

    def write(self, identity: PartIdentity, rows: pa.Table, counts: PartCounts) -> PartCounts:
        """See the protocol."""
        stamped = rows.replace_schema_metadata(part_footer(identity, counts))
        with self._output.scratch() as path:
            with output_errors(path):
                pq.write_table(stamped, path, compression="zstd")
            if self._output.publish(path, keys.part(identity.chunk_id)):
                return counts
        found = self.find(identity)
        if found is None:
            raise OutputConflictError(
                f"{self._output.uri}/{keys.part(identity.chunk_id)} was removed while it was written"
            )
        return found
