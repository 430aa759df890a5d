"""Parts in an output: created once under their own name, adopted if another writer came first.

A retry replaces the part of an earlier generation, and only the very one that it has read. A part of another
job in this job's output was written late, by a worker that was frozen during the write while its job was
cancelled and overwritten: it is replaced.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from clipfleet.contract.parts import PartCounts, PartIdentity
from clipfleet.errors import (
    OutputConflictError,
    OutputDamagedError,
    OutputUnavailableError,
    OutputUnreachableError,
)
from clipfleet.outputs import Output
from clipfleet.outputs.folder import Confirm, unconditionally
from clipfleet.parts import PartFiles
from clipfleet.parts.parquet import ParquetParts
from clipfleet_worker.sinks import OlderPart

log = logging.getLogger(__name__)


class PartSink:
    """See `clipfleet_worker.sinks.Sink`."""

    def __init__(
        self,
        output: Output,
        files: PartFiles | None = None,
        *,
        is_ours: Callable[[], bool] = lambda: True,
    ) -> None:
        """Nothing is read yet.

        Args:
            output: holds the parts.
            files: their format, by default Parquet.
            is_ours: whether the output still holds this job; called before another job's part is replaced.
        """
        self._is_ours = is_ours
        self._output = output
        self._files = files or ParquetParts()

    def find(self, identity: PartIdentity) -> PartCounts | None:
        """Counts of the part in place; reads only the footer of a Parquet part."""
        found = self._footer(identity)
        return found[1] if found and found[0].generation == identity.generation else None

    def _footer(self, identity: PartIdentity) -> tuple[PartIdentity, PartCounts] | None:
        """Footer of this job's part; None if there is none, or another job's. Raises like `find`."""
        name = self._files.name(identity.chunk_id)
        try:
            with self._files.open(self._output, name) as part:
                found, counts = part.footer()
        except FileNotFoundError:
            return None
        except (OutputDamagedError, ValueError) as error:
            raise OutputConflictError(f"{self._output.uri}/{name} is not a part: {error}") from error
        if found.job_id != identity.job_id:
            return None
        self._require_ours(found, identity)
        return found, counts

    def older(self, identity: PartIdentity) -> OlderPart | None:
        name = self._files.name(identity.chunk_id)
        version = self._output.version(name)  # before it is read, so that a later write is noticed
        if version is None:
            return None
        found = self._footer(identity)
        if found is None:
            return None
        if found[0].generation == identity.generation:
            raise OutputUnavailableError(f"{self._output.uri}/{name} was written meanwhile")
        with self._files.open(self._output, name) as part:
            return OlderPart(pa.Table.from_batches(part.batches(), part.schema), version)

    def stored(self, identity: PartIdentity) -> pa.Table:
        name = self._files.name(identity.chunk_id)
        if self.find(identity) is None:
            raise OutputUnavailableError(f"{self._output.uri}/{name} was replaced or removed meanwhile")
        with self._files.open(self._output, name) as part:
            columns = [column for column in part.schema.names if column != "embedding"]
            rows = part.batches(columns)
            return pa.Table.from_batches(rows, pa.schema([part.schema.field(column) for column in columns]))

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
        name = self._files.name(identity.chunk_id)
        with self._output.scratch() as path:
            self._files.write(self._output, path, identity, rows, counts, confirm=confirm)
            if over is not None:
                is_in_place = self._output.replace_if(path, name, over.version, confirm=confirm)
            else:
                is_in_place = self._output.publish(path, name, confirm=confirm) or self._replace_foreign(
                    path, name, identity, confirm
                )
            if is_in_place:
                return counts
        found = self.find(identity)
        if found is None:  # another generation wrote it, or it was removed: the chunk starts again
            raise OutputUnavailableError(f"{self._output.uri}/{name} was replaced or removed meanwhile")
        return found

    def _replace_foreign(self, path: Path, name: str, identity: PartIdentity, confirm: Confirm) -> bool:
        """Replace another job's part; False if the part is this job's, or has changed by now."""
        version = self._output.version(name)  # before it is read
        if version is None or self._footer(identity) is not None:
            return False
        if not self._is_ours():
            raise OutputUnreachableError(
                f"{self._output.uri} does not hold job {identity.job_id} any more: it was overwritten"
            )
        log.warning(
            "replacing %s/%s, which was written late for another job",
            self._output.uri,
            name,
            extra={"action": "foreign_part_replaced", "job_id": identity.job_id},
        )
        return self._output.replace_if(path, name, version, confirm=confirm)

    def _require_ours(self, found: PartIdentity, identity: PartIdentity) -> None:
        where = f"{self._output.uri}/{self._files.name(identity.chunk_id)}"
        found.require(identity.job_id, identity.chunk_id, where)
        if found.generation > identity.generation:
            # No conflict: the job was retried while this worker was frozen.
            raise OutputUnavailableError(f"{where} is of generation {found.generation} by now")
