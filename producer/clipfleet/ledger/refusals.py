"""What a ledger raises when it refuses a call, in the words that users read."""

from __future__ import annotations

from clipfleet.contract.jobs import Job, read_job
from clipfleet.errors import JobConflictError, JobNotFoundError, JobUnreadableError, QuotaExceededError
from clipfleet.ledger.values import Quota


def not_found(job_id: str) -> JobNotFoundError:
    """The ledger knows no such job."""
    return JobNotFoundError(f"job {job_id!r} is not known here: `clipfleet jobs` lists the jobs")


def quota_exceeded(quota: Quota, which: str, used: int) -> QuotaExceededError:
    """`which` is `items` or `bytes`; there would be `used` of them."""
    what, limit = {
        "items": ("items would wait to be done", quota.items),
        "bytes": ("bytes of jobs without an output are kept in Redis", quota.bytes),
    }[which]
    return QuotaExceededError(
        f"{int(used):,} {what}, CLIPFLEET_QUOTA_{which.upper()} allows {limit:,}: "
        "wait until workers have done some, cancel a job, or raise the quota"
    )


def conflict(job: Job, other_spec: str) -> JobConflictError:
    """Another job has this id; `other_spec` is its JSON."""
    try:
        differences = ", ".join(job.differences(read_job(other_spec)))
    except JobUnreadableError:
        differences = "written by another version of clipfleet"
    return JobConflictError(
        f"job {job.job_id!r} exists and differs in: {differences}. "
        "Choose another `job_id=`, or repeat the submit exactly as it was"
    )
