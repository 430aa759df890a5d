"""7. From rows to exactly one part: the protocol, and one file per kind. Makes no rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from clipfleet.contract.parts import PartCounts, PartIdentity
from clipfleet.outputs.folder import Confirm, unconditionally


@dataclass(frozen=True, slots=True)
class OlderPart:
    """The part of an earlier generation, which a retry replaces."""

    rows: pa.Table
    version: str  # what tells this very part from any other


class Sink(Protocol):
    """Keeps exactly one part per chunk, of the highest generation, whoever writes and however often."""

    def find(self, identity: PartIdentity) -> PartCounts | None:
        """Counts of the part that is in place, or None if there is none of this generation yet.

        A part that a late worker of another job has left in our output is none; `write` replaces it.

        Raises:
            OutputConflictError: what is in place is no part, or that of another chunk.
            OutputUnavailableError: the output cannot be read, or holds the part of a later generation.
        """

    def older(self, identity: PartIdentity) -> OlderPart | None:
        """The part of an earlier generation in this place, or None. Raises like `find`."""

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
        """Put a part in place, unless it is there already.

        Args:
            identity: whose part it is.
            rows: all its rows.
            counts: its rows by outcome.
            over: what it may replace; by default nothing.
            token: of the claim. Rows that become visible by its `complete` wait under it.
            confirm: called immediately before the part becomes visible; what it raises keeps it from that.

        Returns:
            Counts of the part that is in place now: another writer's, if it came first.

        Raises:
            OutputConflictError: what is in place belongs to another job.
            OutputUnavailableError: the output cannot be written, or holds the part of another generation than
                it did before. Begin with the chunk again.
        """
