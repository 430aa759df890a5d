"""The decisions of a chunk of a moderation job: filled in before the write, recorded after it.

What is recorded and announced is read from the rows in place, whoever has written them: so a chunk that is
done twice has one decision per item.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa

from clipfleet.contract.jobs import Job
from clipfleet.contract.parts import PartIdentity
from clipfleet.contract.webhooks import DecisionEvent
from clipfleet.moderation.deciding import with_decisions
from clipfleet.moderation.log import write_records
from clipfleet.moderation.records import decided_in, records, thin
from clipfleet.outputs import Output
from clipfleet.outputs.folder import Confirm


@dataclass(frozen=True, slots=True)
class Decisions:
    """Decides by the policy of one job. Thread-safe."""

    job: Job
    log: Output | None  # None: rows only
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def filled_in(self, rows: pa.Table, generation: int) -> pa.Table:
        """Fresh rows with their decisions; those of a job without a policy as they are."""
        return rows if self.job.policy is None else with_decisions(rows, self.job, generation, self.now())

    def recorded(
        self, stored: Callable[[], pa.Table], identity: PartIdentity, confirm: Confirm
    ) -> Sequence[DecisionEvent]:
        """Record the decisions of rows in place; return what is to be announced. Idempotent.

        Args:
            stored: reads the rows; called for jobs that announce their decisions only.
            identity: of the chunk.
            confirm: called before each write.
        """
        policy = self.job.policy
        if policy is None or policy.is_dry:
            return ()
        found = list(records(decided_in(stored(), identity.generation), self.job))
        if self.log is not None:
            write_records(
                self.log,
                self.job,
                identity.generation,
                found,
                self.now().date(),
                may_replace=self.job.output_is_redis,
                confirm=confirm,
            )
        return [
            DecisionEvent(
                status=one["status"],
                event_id=f"evt-{one['decision_id']}",
                policy=policy.name,
                record=thin(one),
            )
            for one in found
        ]
