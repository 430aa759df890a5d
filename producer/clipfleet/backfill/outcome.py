"""What became of a night."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

from clipfleet.contract.jobs import Job, JobState
from clipfleet.errors import OutputDamagedError
from clipfleet.ledger.jobs import JobStatus
from clipfleet.outputs import objects, open_output
from clipfleet.store.committing.commit import Counts
from clipfleet.store.place import JOBS_FOLDER

_ENDED_WELL = (JobState.COMPLETED, JobState.COMPLETED_WITH_ERRORS)


@dataclass(frozen=True, slots=True)
class BackfillResult:
    """A night in numbers."""

    store: str
    version: int  # of the store, with the night in it; 0: it has none yet
    new: int  # items that were embedded, or have the vector of an equal image
    changed: int  # likewise, of those that the store had
    same: int
    gone: int
    failed: int  # they keep the vectors they had, and are tried again by the next night
    copied: int  # of the new and changed ones: those with the vector of an equal image
    fetched_bytes: int
    seconds: float
    left: int = 0  # items above the limit of one night
    late: int = 0  # items that stay as other backfills have committed them meanwhile, again and again
    ran: int = 0  # items of the last job
    job_id: str | None = None  # of the last job; None: no item was to be run
    state: JobState = JobState.COMPLETED  # of that job
    reason: str = ""  # why it has ended early
    switched: bool = False  # of a migration: its vectors are the current ones by now

    @property
    def is_complete(self) -> bool:
        """Whether the night was committed."""
        return self.state in _ENDED_WELL

    @property
    def errors_file(self) -> str:
        """Where the failed items of the last job are listed."""
        return f"{self.store}/{JOBS_FOLDER}/{self.job_id}/{objects.LAYOUT.errors}"


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What became of one round."""

    version: int
    counts: Counts = field(default_factory=Counts)
    same: int = 0  # with those that were not asked
    left: int = 0
    ran: int = 0
    fetched_bytes: int = 0
    job_id: str | None = None
    state: JobState = JobState.COMPLETED
    reason: str = ""
    is_superseded: bool = False  # the store had other vectors by then: nothing was committed

    @property
    def is_complete(self) -> bool:
        """Whether the round was committed, if there was anything to commit."""
        return self.state in _ENDED_WELL

    @property
    def found(self) -> int:
        """Changes that were committed."""
        return self.counts.new + self.counts.changed + self.counts.gone

    def after(self, earlier: RoundResult) -> RoundResult:
        """Both rounds in one: changes of both, each item once; all else as of this one."""
        mine, theirs = self.counts, earlier.counts
        new, changed, copied, gone = (
            getattr(mine, name) + getattr(theirs, name) for name in ("new", "changed", "copied", "gone")
        )
        there = mine.new + mine.changed + self.same  # after this round
        # Those that were new in the earlier round and have changed in this one are new.
        changed -= min(changed, max(0, new + changed - gone - there))
        return replace(
            self,
            counts=replace(mine, new=new, changed=changed, copied=copied, gone=gone),
            same=max(0, there - new - changed),
            fetched_bytes=self.fetched_bytes + earlier.fetched_bytes,
        )

    def result(self, store: str, seconds: float, *, switched: bool = False) -> BackfillResult:
        """The night, or the migration, if this is all of it."""
        counts = self.counts
        return BackfillResult(
            store, self.version, counts.new, counts.changed, self.same, counts.gone, counts.failed,
            counts.copied, self.fetched_bytes, seconds, self.left, counts.late, self.ran, self.job_id,
            self.state, self.reason, switched,
        )  # fmt: skip


def of_job(job: Job, status: JobStatus | None) -> RoundResult:
    """The round of a job that has ended; without a snapshot it is known to have ended well.

    Raises:
        OutputUnavailableError: its manifest cannot be read.
    """
    target = job.store
    assert target is not None  # noqa: S101 - it is a job of a store
    if status is not None and status.state not in _ENDED_WELL:
        return RoundResult(
            target.base_version, Counts(failed=status.failed), target.same, target.left, status.total,
            job_id=job.job_id, state=status.state, reason=status.reason,
        )  # fmt: skip
    found = _manifest(job)
    try:
        of_store = found["store"]
        is_superseded = "superseded" in of_store
        counts = Counts(late=int(found["total"])) if is_superseded else Counts(**of_store.get("counts", {}))
        state = JobState.COMPLETED_WITH_ERRORS if found["failed"] else JobState.COMPLETED
        return RoundResult(
            int(of_store.get("version", 0)), counts, target.same + counts.same, target.left,
            int(found["total"]), int(found["fetched_bytes"]), job.job_id, state,
            is_superseded=is_superseded,
        )  # fmt: skip
    except (LookupError, TypeError, ValueError, AttributeError):
        raise OutputDamagedError(
            f"{job.output}/{objects.MANIFEST} is not the manifest of a store's job"
        ) from None


def _manifest(job: Job) -> Any:
    data = open_output(job.output).read(objects.MANIFEST)
    try:
        return json.loads(data or b"")
    except (ValueError, RecursionError):
        raise OutputDamagedError(f"{job.output}/{objects.MANIFEST} is gone or damaged") from None
