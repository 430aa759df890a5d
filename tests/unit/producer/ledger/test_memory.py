"""What `tests/promises` cannot show of a ledger in memory: there, jobs expire by Redis's own clock."""

from __future__ import annotations

import pytest

from clipfleet.contract.jobs import JobState
from clipfleet.errors import JobNotFoundError
from clipfleet.ledger.memory import MemoryLedger
from tests.support.doubles import Clock
from tests.support.ledger import add_job, draft, make_job


def test_an_expired_job_is_unknown_and_can_only_be_rebuilt() -> None:
    clock = Clock()
    ledger = MemoryLedger(now=clock)
    add_job(ledger, chunks=1)
    ledger.cancel("job", ttl_seconds=10)
    clock.now += 11
    ledger.drafts.begin("job", "token")

    with pytest.raises(JobNotFoundError):
        ledger.status("job")
    assert ledger.drafts.retry("job", "token", draft(1), generation=1) == ("missing", None)
    answer, _ = ledger.drafts.rebuild(
        make_job(), "token", draft(1), state=JobState.RUNNING, generation=0, items=10, ttl_seconds=60
    )
    assert answer == "rebuilt"
