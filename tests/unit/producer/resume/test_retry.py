"""What a retry does before it looks at the parts. The rest needs a real ledger: `tests/e2e/test_retry.py`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from clipfleet.contract.jobs import JobState
from clipfleet.hints import Hints
from clipfleet.ledger.jobs import JobStatus, Ledger
from clipfleet.outputs.folder import FolderOutput
from clipfleet.resume.retry import Retry
from tests.support.jobs import make_job, make_status, place_job

LEASE_SECONDS = 45.0


class PlainStore(FolderOutput):
    """One that ignores conditions."""

    @property
    def has_conditional_writes(self) -> bool:
        return False


class EndedJob:
    """A ledger that knows one job without any chunks."""

    def __init__(self, state: JobState) -> None:
        self._state = state
        self.drafts = SimpleNamespace(begin=lambda job_id, token: None)

    def status(self, job_id: str) -> JobStatus:
        return make_status(job_id=job_id, state=self._state, generation=1, chunks=0)


def slept(output: FolderOutput, state: JobState) -> list[float]:
    job, seconds = make_job(output.uri), []
    place_job(output, job)
    retry = Retry(
        cast(Ledger, EndedJob(state)),
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
