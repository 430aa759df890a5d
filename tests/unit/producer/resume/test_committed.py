"""A job that has filled its store is neither retried nor rebuilt: its parts are gone."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from clipfleet.contract.jobs import Job, JobState
from clipfleet.errors import UsageError
from clipfleet.ledger.memory import MemoryLedger
from clipfleet.outputs import open_output
from clipfleet.resume.rebuild import Rebuild
from clipfleet.resume.retry import Retry, parts_in_place
from tests.support.backfills import Nights, uris
from tests.support.hints import CountedHints
from tests.support.store_rows import ListedItems, item

REFUSAL = r"job \S+ has ended, and its rows are in the store /.*: run `clipfleet backfill` again"


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    return Nights(tmp_path / "store")


def retry(nights: Nights, job: Job) -> bool:
    output = open_output(job.output)
    parts = partial(parts_in_place, output, job)
    return Retry(nights.ledger, CountedHints(), output, parts, job, lease_seconds=1).run()


def finished(nights: Nights) -> Job:
    nights.images = dict.fromkeys(uris("b"))
    result = nights.night(ListedItems([item("a"), item("b")])).wait()
    assert result.failed == 1
    return nights.ledger.job(result.job_id or "")


def test_no_retry_after_the_commit(nights: Nights) -> None:
    job = finished(nights)

    with pytest.raises(UsageError, match=REFUSAL):
        retry(nights, job)

    assert nights.ledger.status(job.job_id).state is JobState.COMPLETED_WITH_ERRORS
    assert nights.ids() == ["a"]


def test_no_rebuild_after_the_commit(nights: Nights) -> None:
    job, lost = finished(nights), MemoryLedger()

    with pytest.raises(UsageError, match=REFUSAL):
        Rebuild(lost, CountedHints(), open_output(job.output), job, 60).run()

    assert lost.jobs() == []


def test_a_cancelled_job_may_be_retried(nights: Nights) -> None:
    night = nights.night(ListedItems([item("a"), item("b")]))
    night.begin()
    assert night.job is not None
    nights.ledger.cancel(night.job.job_id, ttl_seconds=60)

    assert retry(nights, night.job.job)

    assert night.wait().new == 2


def test_a_job_in_progress_is_rebuilt(nights: Nights) -> None:
    night = nights.night(ListedItems([item("a"), item("b")]))
    night.begin()
    assert night.job is not None
    job, lost = night.job.job, MemoryLedger()

    assert Rebuild(lost, CountedHints(), open_output(job.output), job, 60).run() is JobState.RUNNING
