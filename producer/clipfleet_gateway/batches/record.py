"""What is kept of a batch: the request, what each step has found, and when. Frozen data, no I/O."""

from __future__ import annotations

import re
import secrets
from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from clipfleet.contract.jobs import Task
from clipfleet.contract.label_sets import FrozenModel
from clipfleet_gateway.files.record import FileRecord
from clipfleet_gateway.shapes.batches import (
    Batch,
    BatchError,
    BatchErrors,
    BatchStatus,
    Endpoint,
    RequestCounts,
)

BATCH_VERSION = 1
WINDOW_SECONDS = 24 * 3600
_BATCH_ID = re.compile(r"batch_([0-9a-f]{12})[0-9a-f]{20}")
_RANDOM_BYTES = 10


class Ending(StrEnum):
    """How the job of a batch has ended."""

    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def status(self) -> BatchStatus:
        """The status that the batch ends in."""
        return BatchStatus(self.value)


class PolicyName(FrozenModel):
    """A policy that decides on all lines, whatever its name means later."""

    name: str
    sha256: str


class Checked(FrozenModel):
    """What the validation has found in the input file."""

    task: Task
    model: str
    requests: int  # lines
    inputs: int  # items of the job
    top_k: int = 1  # most labels of a line
    policy: PolicyName | None = None  # of moderations

    @property
    def shown_model(self) -> str:
        """What clients call the model: of moderations the policy."""
        return self.model if self.policy is None else self.policy.name


class BatchRecord(FrozenModel):
    """A batch. Every change has a higher `revision`: the place tells versions apart by their bytes."""

    schema_version: int = BATCH_VERSION
    revision: int = 0
    id: Annotated[str, Field(pattern=f"^{_BATCH_ID.pattern}$")]
    owner: str  # name of the key
    endpoint: Endpoint
    input_file_id: str
    input_sha256: str  # of its content
    metadata: dict[str, str] | None = None
    output_expires_after_seconds: int | None = None
    status: BatchStatus = BatchStatus.VALIDATING
    checked: Checked | None = None  # None: not validated
    is_submitted: bool = False  # whether all items were handed over to the job
    ending: Ending | None = None  # of the job; the files are still to be written
    errors: tuple[BatchError, ...] = ()
    has_files: bool = False  # whether the following three are known
    output_file: FileRecord | None = None
    error_file: FileRecord | None = None
    counts: tuple[int, int] = (0, 0)  # lines that are done, and that are not
    created_at: int  # in seconds since 1970, like all times
    expires_at: int
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None

    @property
    def wants(self) -> tuple[str, str, tuple[tuple[str, str], ...]]:
        """What makes two requests for a batch the same one."""
        return self.input_sha256, self.endpoint, tuple(sorted((self.metadata or {}).items()))

    def shown(self, progress: tuple[int, int] | None = None) -> Batch:
        """The batch as clients see it, with the lines that are done and failed so far."""
        completed, failed = self.counts if self.has_files or progress is None else progress
        total = self.checked.requests if self.checked else 0
        values = self.model_dump(include=set(Batch.model_fields) - {"errors"})
        return Batch(
            **values,
            model=self.checked.shown_model if self.checked else None,
            errors=BatchErrors(data=self.errors) if self.errors else None,
            output_file_id=self.output_file.id if self.is_out and self.output_file else None,
            error_file_id=self.error_file.id if self.is_out and self.error_file else None,
            request_counts=RequestCounts(total=total, completed=completed, failed=failed),
        )

    @property
    def is_out(self) -> bool:
        """Whether its files can be read."""
        return self.status.is_final


def new_batch_id(now: datetime) -> str:
    """A new id; later ones sort after earlier ones, to a millisecond."""
    return f"batch_{int(now.timestamp() * 1000):012x}{secrets.token_hex(_RANDOM_BYTES)}"


def made_at(batch_id: str) -> int:
    """When an id was made, in seconds since 1970."""
    found = _BATCH_ID.fullmatch(batch_id)
    return int(found[1], 16) // 1000 if found else 0


def is_batch_id(text: str) -> bool:
    """Whether a text could be the id of a batch, which then is safe as a part of a name."""
    return _BATCH_ID.fullmatch(text) is not None
