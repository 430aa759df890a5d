"""Where the rows of a chunk go: the protocol, and one file per kind."""

from __future__ import annotations

from typing import Protocol

import pyarrow as pa

from clipfleet.parts import PartCounts, PartIdentity


class Sink(Protocol):
    """Keeps exactly one part per chunk and generation, whoever writes and however often."""

    def find(self, identity: PartIdentity) -> PartCounts | None:
        """Counts of the part that is in place, or None.

        Raises:
            OutputConflictError: what is in place belongs to another job.
            OutputUnavailableError: the output cannot be read.
        """
        ...

    def write(self, identity: PartIdentity, rows: pa.Table, counts: PartCounts) -> PartCounts:
        """Put a part in place, unless it is there already.

        Returns:
            Counts of the part that is in place now: another writer's, if it came first.

        Raises:
            OutputConflictError: what is in place belongs to another job.
            OutputUnavailableError: the output cannot be written.
        """
        ...
