"""What a worker does about expired leases."""

from __future__ import annotations

import pytest

from clipfleet.errors import RedisUnavailableError
from clipfleet.ledger.jobs import WorkerFacts
from clipfleet_worker.process.reconciler import Reconciler
from clipfleet_worker.process.watchdog import Pulse

FACTS = WorkerFacts(worker_id="w", host="h", pid=1, models=("demo",))


class LosingLedger:
    """Has lost some chunks at each look, or is away."""

    def __init__(self, *lost: int | None) -> None:
        self._lost = list(lost)

    def reconcile(self, **_: object) -> tuple[int, int]:
        lost = self._lost.pop(0)
        if lost is None:
            raise RedisUnavailableError("away")
        return lost, 0

    def workers(self) -> list[WorkerFacts]:
        return [FACTS]


@pytest.mark.parametrize(("lost", "told"), [((3,), [3]), ((0,), []), ((None, 2), [2])])
def test_a_worker_that_reconciles_leases_publishes_hints(
    lost: tuple[int | None, ...], told: list[int]
) -> None:
    """Else the chunks would wait for a puller: the dead worker held the hints."""
    heard: list[int] = []
    reconciler = Reconciler(
        LosingLedger(*lost),  # type: ignore[arg-type]  # a double
        lambda: FACTS,
        period_seconds=1,
        lease_seconds=3,
        on_workers=lambda _: None,
        on_lost=heard.append,
        pulse=Pulse("reconciler"),
    )

    for _ in lost:
        reconciler.reconcile()

    assert heard == told
