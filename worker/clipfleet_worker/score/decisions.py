"""The decisions of a chunk of a moderation job: filled in before the write, recorded after it.

What is recorded and announced is read from the rows in place, whoever has written them: so a chunk that is
done twice has one decision per item.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import pyarrow as pa

from clipfleet.contract.jobs import Job
from clipfleet.contract.parts import PartIdentity
from clipfleet.contract.policies import DecisionId
from clipfleet.contract.webhooks import DecisionEvent
from clipfleet.moderation.deciding import with_decisions
from clipfleet.moderation.log import has_records, write_records
from clipfleet.moderation.records import decided_after, records, thin
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
        self,
        stored: Callable[[], pa.Table],
        identity: PartIdentity,
        decided: Callable[[], int],
        confirm: Confirm,
    ) -> Sequence[DecisionEvent] | None:
        """Record the decisions of rows in place; return what is to be announced. Idempotent.

        Args:
            stored: reads the rows. Like `decided`, called for jobs that announce their decisions only.
            identity: of the chunk.
            decided: the last generation whose decisions were announced. Those of later ones are new: the
                worker of an earlier generation may have been cut off before it had announced them.
            confirm: called before each write.
        """
        policy = self.job.policy
        if policy is None or not self.job.announces_decisions:
            return None
        found = list(records(decided_after(stored(), decided()), self.job))
        if self.log is not None:
            for generation, some in groupby(sorted(found, key=_generation), _generation):
                self._record(self.log, generation, identity, list(some), confirm)
        return [
            DecisionEvent(
                status=one["status"],
                event_id=f"evt-{one['decision_id']}",
                policy=policy.name,
                record=thin(one),
            )
            for one in found
        ]

    def _record(
        self,
        log: Output,
        generation: int,
        identity: PartIdentity,
        found: Sequence[Mapping[str, Any]],
        confirm: Confirm,
    ) -> None:
        if generation < identity.generation and has_records(log, self.job, generation, found):
            return  # its worker was cut off later; its file has those that are run again, too
        write_records(
            log,
            self.job,
            generation,
            found,
            self.now().date(),
            may_replace=self.job.output_is_redis,
            confirm=confirm,
        )


def _generation(record: Mapping[str, Any]) -> int:
    return DecisionId.of_text(record["decision_id"]).generation
