"""A chunk in the hands of this worker."""

from __future__ import annotations

from dataclasses import dataclass

from clipfleet.ledger.jobs import Claim


@dataclass(frozen=True, slots=True, eq=False)
class HeldChunk:
    """A chunk from `Claims.take` to `Claims.done_with`; the `LeaseKeeper` has its lease."""

    claim: Claim
    taken_at: float  # monotonic seconds
    from_reserve: bool = False  # `OpenItems` counts it so
