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
    version: str  # identifies this very part


class Sink(Protocol):
    """Keeps exactly one part per chunk, of the highest generation, however often workers write."""

    def find(self, identity: PartIdentity) -> PartCounts | None:
        """Counts of the part in place, or None if there is none of this generation yet.

        A part that a late worker of another job has left in this output does not count; `write` replaces it.

        Raises:
            OutputConflictError: the object in place is no part, or that of another chunk.
            OutputUnavailableError: the output cannot be read, or holds the part of a later generation.
        """

    def older(self, identity: PartIdentity) -> OlderPart | None:
        """The part of an earlier generation in this place, or None. Raises like `find`."""

    def stored(self, identity: PartIdentity) -> pa.Table | None:
        """The rows of the part in place, without vectors; None: rows become visible with `complete` only.

        Raises:
            OutputConflictError: the part in place belongs to another job.
            OutputUnavailableError: the part cannot be read, or is of another generation.
        """

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
            identity: of the part.
            rows: all its rows.
            counts: its rows by outcome.
            over: the part that it may replace; by default none.
            token: of the claim. Rows that become visible with its `complete` are stored under it.
            confirm: called immediately before the part becomes visible; what it raises prevents that.

        Returns:
            Counts of the part in place now: another writer's, if that came first.

        Raises:
            OutputConflictError: the part in place belongs to another job.
            OutputUnavailableError: the output cannot be written, or its part was replaced meanwhile by one of
                another generation. Start the chunk again.
        """
