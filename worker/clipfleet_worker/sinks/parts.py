"""Parquet parts in an output: created once under their own name, adopted if another writer came first."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq

from clipfleet import keys
from clipfleet.contract import SCHEMA_VERSION
from clipfleet.errors import OutputConflictError
from clipfleet.outputs import Output
from clipfleet.parts import PartCounts, PartIdentity

_FOOTER = b"clipfleet"


class PartSink:
    """See `clipfleet_worker.sinks.Sink`."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def find(self, identity: PartIdentity) -> PartCounts | None:
        """See the protocol. Reads only the footer."""
        name = keys.part(identity.chunk_id)
        try:
            with self._output.open(name) as file:
                metadata = pq.read_metadata(file).metadata or {}
        except FileNotFoundError:
            return None
        except pa.ArrowInvalid as error:
            raise OutputConflictError(f"{self._output.uri}/{name} is not a part: {error}") from error
        footer = json.loads(metadata.get(_FOOTER, b"{}"))
        found = PartIdentity(
            footer.get("job_id", ""), footer.get("chunk_id", -1), footer.get("generation", -1)
        )
        if found != identity:
            raise OutputConflictError(
                f"{self._output.uri}/{name} belongs to job {found.job_id or '?'}, "
                f"generation {found.generation}"
            )
        return PartCounts(footer["ok"], footer["failed"], footer["codes"])

    def write(self, identity: PartIdentity, rows: pa.Table, counts: PartCounts) -> PartCounts:
        """See the protocol."""
        footer = {
            "job_id": identity.job_id,
            "chunk_id": identity.chunk_id,
            "generation": identity.generation,
            "ok": counts.ok,
            "failed": counts.failed,
            "codes": dict(counts.codes),
            "schema_version": SCHEMA_VERSION,
        }
        stamped = rows.replace_schema_metadata({_FOOTER: json.dumps(footer)})
        with self._output.scratch() as path:
            pq.write_table(stamped, path, compression="zstd")
            if self._output.publish(path, keys.part(identity.chunk_id)):
                return counts
        found = self.find(identity)
        if found is None:
            raise OutputConflictError(
                f"{self._output.uri}/{keys.part(identity.chunk_id)} was removed while it was written"
            )
        return found
