"""What a worker does about expired leases."""

from __future__ import annotations

import pytest

from clipfleet.errors import RedisUnavailableError
from clipfleet.ledger.jobs import WorkerFacts
from clipfleet_worker.process.reconciler import Reconciler
from clipfleet_worker.process.watchdog import Pulse
from tests.support.ledger_replies import RepliesLedger

FACTS = WorkerFacts(worker_id="w", host="h", pid=1, models=("demo",))


AWAY = RedisUnavailableError("away")


@pytest.mark.parametrize(("answers", "told"), [([(3, 0)], [3]), ([(0, 0)], []), ([AWAY, (2, 0)], [2])])
def test_whoever_takes_chunks_back_says_that_there_is_work(
    answers: list[tuple[int, int] | Exception], told: list[int]
) -> None:
    """Else the chunks would wait for a puller: the dead worker held the hints."""
    heard: list[int] = []
    ledger = RepliesLedger()
    ledger.replies["reconcile"] = list(answers)
    reconciler = Reconciler(
        ledger, lambda: FACTS, period_seconds=1, lease_seconds=3, on_workers=lambda _: None,
        on_lost=heard.append, pulse=Pulse("reconciler"),
    )  # fmt: skip

    for _ in answers:
        reconciler.reconcile()

    assert heard == told
