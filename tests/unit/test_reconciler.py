"""What a worker does about the chunks that others have lost."""

from __future__ import annotations

import pytest

from clipfleet.errors import RedisUnavailableError
from clipfleet.ledger import WorkerFacts
from clipfleet_worker.background import Reconciler
from clipfleet_worker.watchdog import Pulse

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
def test_whoever_takes_chunks_back_says_that_there_is_work(
    lost: tuple[int | None, ...], told: list[int]
) -> None:
    """Else they would wait until an idle worker looks by itself: the dead worker held the hints."""
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
