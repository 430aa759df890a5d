"""Jobs that fill a store are over for good once it has their rows."""

from __future__ import annotations

from clipfleet.contract.jobs import Job
from clipfleet.errors import UsageError
from clipfleet.outputs import Output, objects


def require_open(job: Job, output: Output) -> None:
    """Raise `UsageError` if a store has the rows of a job: its parts are gone, and nothing is left to run."""
    if job.store is not None and output.read(objects.SUCCESS) is not None:
        raise UsageError(
            f"job {job.job_id} has ended, and its rows are in the store {job.store.uri}: run "
            "`clipfleet backfill` again, which tries its failed items again"
        )
