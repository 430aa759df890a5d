"""What a retry does before it looks at the parts. The rest needs a real ledger: `tests/e2e/test_retry.py`."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from clipfleet.contract.jobs import JobState
from clipfleet.hints import Hints
from clipfleet.ledger.drafts import Drafts
from clipfleet.outputs.folder import FolderOutput
from clipfleet.resume.retry import Retry
from tests.support.jobs import make_job, make_status, place_job
from tests.support.ledger_replies import RepliesLedger

LEASE_SECONDS = 45.0


class PlainStore(FolderOutput):
    """One that ignores conditions."""

    @property
    def has_conditional_writes(self) -> bool:
        return False


def slept(output: FolderOutput, state: JobState) -> list[float]:
    job, seconds, ledger = make_job(output.uri), [], RepliesLedger()
    ledger.replies["status"] = make_status(state=state, generation=1, chunks=0)
    ledger.drafts = Drafts(lambda *_: None, ledger.status)
    place_job(output, job)
    retry = Retry(
        ledger,
        cast(Hints, None),
        output,
        lambda chunks: [],
        job,
        lease_seconds=LEASE_SECONDS,
        sleep=seconds.append,
    )
    retry.run()
    return seconds


@pytest.mark.parametrize(("kind", "expected"), [(FolderOutput, []), (PlainStore, [LEASE_SECONDS])])
def test_where_a_late_writer_is_not_refused_its_lease_is_waited_for(
    tmp_path: Path, kind: type[FolderOutput], expected: list[float]
) -> None:
    assert slept(kind(tmp_path / "out"), JobState.COMPLETED) == expected


def test_a_retry_that_is_under_way_is_not_waited_for(tmp_path: Path) -> None:
    assert slept(PlainStore(tmp_path / "out"), JobState.RUNNING) == []
