"""What is kept of a job: the request, how far its submit is, and how it ended. Frozen data, no I/O."""

from __future__ import annotations

import re
import secrets
from datetime import datetime
from typing import Annotated, Self

from pydantic import Field

from clipfleet.contract.jobs import JobState, Lane
from clipfleet.contract.label_sets import FrozenModel
from clipfleet.ledger.jobs import JobStatus
from clipfleet_gateway.errors import NOT_RUN, WAITS, ApiError, why_not_submitted
from clipfleet_gateway.policies.stored import SHOWN_DIGITS
from clipfleet_gateway.shapes.jobs import JobBody, JobError, JobObject

JOB_VERSION = 1
_JOB_ID = re.compile(r"job_([0-9a-f]{12})[0-9a-f]{20}")
_RANDOM_BYTES = 10


class Counts(FrozenModel):
    """A snapshot of the ledger, of which the last one is kept."""

    state: JobState
    total: int = 0
    is_total_final: bool = False
    ok: int = 0
    failed: int = 0
    error_codes: dict[str, int] = Field(default_factory=dict)
    items_per_second: float | None = None
    reason: str | None = None
    finished_at: int | None = None

    @classmethod
    def of(cls, status: JobStatus) -> Self:
        """What clients see of a status."""
        seconds = status.lasted_seconds
        return cls(
            state=status.state,
            total=status.total,
            is_total_final=status.sealed,
            ok=status.ok,
            failed=status.failed,
            error_codes=dict(status.codes),
            items_per_second=round(status.done / seconds, 2) if status.done and seconds > 0 else None,
            reason=_reason(status),
            finished_at=None if status.finished_ms is None else status.finished_ms // 1000,
        )


def _reason(status: JobStatus) -> str | None:
    """Why a job ended early or waits; words of workers hold their paths."""
    if not status.reason:
        return None
    match status.state:
        case JobState.CANCELLED:  # too many of its rows have failed
            return status.reason
        case JobState.FAILED:
            return NOT_RUN
        case _:
            return WAITS


class PolicyName(FrozenModel):
    """The policy of a job."""

    name: str
    sha256: str
    model: str

    @property
    def full_name(self) -> str:
        """What requests call it."""
        return f"{self.name}@{self.sha256[:SHOWN_DIGITS]}"


class JobRecord(FrozenModel):
    """A job. Every change has a higher `revision`: the place tells versions apart by their bytes."""

    schema_version: int = JOB_VERSION
    revision: int = 0
    id: Annotated[str, Field(pattern=f"^{_JOB_ID.pattern}$")]  # also that of the ledger
    owner: str
    created_at: int  # in seconds since 1970
    asked: JobBody
    source: str | None  # None: its items lie beside it
    digest: str  # of the whole request
    policy: PolicyName | None = None  # of a task moderate, whatever its name means later
    is_submitted: bool = False  # all items are known to the ledger
    is_cancelled: bool = False  # by its owner
    error: JobError | None = None  # why it was not submitted
    end: Counts | None = None  # once it has ended

    def shown(self, lane: Lane, counts: Counts | None = None) -> JobObject:
        """The job as its owner sees it.

        Args:
            lane: of its key.
            counts: of now; None: the ledger does not know it yet.
        """
        now = self.end or counts or Counts(state=JobState.SUBMITTING)
        return JobObject(
            id=self.id, created_at=self.created_at, task=self.asked.task,
            model=self.asked.model if self.policy is None else self.policy.model,
            policy=None if self.policy is None else self.policy.full_name,
            lane=lane, source=self.source, error=self.error, **now.model_dump(),
        )  # fmt: skip


def new_job_id(now: datetime) -> str:
    """A new id; later ones sort after earlier ones, to a millisecond."""
    return f"job_{int(now.timestamp() * 1000):012x}{secrets.token_hex(_RANDOM_BYTES)}"


def made_at(job_id: str) -> int:
    """When an id was made, in seconds since 1970."""
    found = _JOB_ID.fullmatch(job_id)
    return int(found[1], 16) // 1000 if found else 0


def is_job_id(text: str) -> bool:
    """Whether a text could be the id of a job, which then is safe as a part of a name."""
    return _JOB_ID.fullmatch(text) is not None


def job_error(error: ApiError | Exception) -> JobError:
    """Why a job cannot be submitted."""
    if isinstance(error, ApiError):
        return JobError(code=error.code, message=error.message, param=error.param)
    return JobError(code="not_submitted", message=why_not_submitted(error))
