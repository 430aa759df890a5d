"""What clients see of a job: nothing that only the gateway's operator should."""

from __future__ import annotations

import pytest

from clipfleet.contract.jobs import JobState
from clipfleet.errors import OutputConflictError, SourceError, UsageError
from clipfleet_gateway.errors import NOT_RUN, NOT_SUBMITTED, WAITS, invalid
from clipfleet_gateway.jobs.record import Counts, job_error
from tests.support.batches import status_of

PATH = "/srv/place/jobs/job_1"


@pytest.mark.parametrize(
    ("state", "reason", "shown"),
    [
        (JobState.FAILED, f"{PATH}: no such disk", NOT_RUN),
        (JobState.PAUSED, f"{PATH}: disk full", WAITS),
        (JobState.RUNNING, f"{PATH}: disk full", WAITS),
        (JobState.CANCELLED, "2 of 3 rows failed", "2 of 3 rows failed"),
        (JobState.CANCELLED, "", None),
        (JobState.RUNNING, "", None),
    ],
)
def test_reasons_of_workers_stay_inside(state: JobState, reason: str, shown: str | None) -> None:
    assert Counts.of(status_of("job_1", state, 3, 1, 2, reason)).reason == shown


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (OutputConflictError(f"{PATH} holds job other"), NOT_SUBMITTED),
        (SourceError("/data/mine does not exist"), "/data/mine does not exist"),
        (UsageError("top_k=9 is too large"), "top_k=9 is too large"),
        (invalid("items[0] is wrong", "items[0]"), "items[0] is wrong"),
    ],
)
def test_why_a_job_is_not_submitted(error: Exception, shown: str) -> None:
    assert job_error(error).message == shown
