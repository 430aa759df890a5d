"""Every word that a Lua script answers; an unknown one raises a `ValueError` that names it."""

from __future__ import annotations

from enum import StrEnum

MISSING = "missing"  # in place of a job's state: the ledger does not know the job


class SubmitAnswer(StrEnum):
    """Of `submit.lua`."""

    CREATED = "created"
    EXISTS = "exists"
    QUOTA = "quota"  # raised as `QuotaExceededError`


class StageAnswer(StrEnum):
    """Of `stage.lua`. Only `STAGED` changes anything."""

    STAGED = "staged"
    KNOWN = "known"  # a repetition
    GAP = "gap"  # the file does not follow the last one
    REFUSED = "refused"  # the job is sealed, over or unknown
    QUOTA = "quota"  # raised as `QuotaExceededError`


class SealAnswer(StrEnum):
    """Of `seal.lua`."""

    SEALED = "sealed"  # also to a repetition
    MISMATCH = "mismatch"  # other chunks or items were staged
    REFUSED = "refused"  # the job is over or unknown


class RenewAnswer(StrEnum):
    """Of `renew.lua`, for each lease."""

    HELD = "held"
    PAUSED = "paused"  # held; the job is paused
    LOST = "lost"
    CANCELLED = "cancelled"  # the job was cancelled or has failed


class CompleteAnswer(StrEnum):
    """Of `complete.lua`."""

    DONE = "done"
    FINISHING = "finishing"  # done, and the last chunk of the job
    ENDED = "ended"  # the same, and the job has ended: its rows live in Redis
    STOPPED = "stopped"  # done; too many rows have failed, and the job has ended as `cancelled`
    ALREADY = "already"  # the chunk is complete
    STALE = "stale"  # of another generation
    CANCELLED = "cancelled"  # the job was cancelled or has failed
    MISSING = MISSING  # the chunk was never claimed, or the job is unknown
    INCOMPLETE = "incomplete"  # rows of a `redis://` job are missing: write them again

    @property
    def is_counted(self) -> bool:
        """Whether this call has added the chunk's rows."""
        return self in (self.DONE, self.FINISHING, self.ENDED, self.STOPPED)


class WriteAnswer(StrEnum):
    """Of `write_rows.lua`: written, or why the chunk takes no rows; see `CompleteAnswer`."""

    WRITTEN = "written"
    ALREADY = "already"
    STALE = "stale"
    CANCELLED = "cancelled"
    MISSING = MISSING


class ReleaseAnswer(StrEnum):
    """Of `release.lua`."""

    RELEASED = "released"
    PAUSED = "paused"  # released, and the job is paused: the outage has lasted too long
    NOT_HELD = "not_held"


class FinishAnswer(StrEnum):
    """Of `finish.lua`: the final state of the job, or why it was not ended."""

    COMPLETED = "completed"
    COMPLETED_WITH_ERRORS = "completed_with_errors"
    CANCELLED = "cancelled"
    FAILED = "failed"
    STALE = "stale"  # of another generation, or not ready to be finished
    MISSING = MISSING


class PostponeAnswer(StrEnum):
    """Of `postpone_finish.lua`."""

    POSTPONED = "postponed"
    PAUSED = "paused"  # the outage has lasted too long
    FAILED = "failed"  # the same, where waiting does not help
    NOT_HELD = "not_held"


class RetryAnswer(StrEnum):
    """Of `retry.lua`."""

    STARTED = "started"  # also to a repetition
    REFUSED = "refused"  # the job is not over
    TAKEN = "taken"  # a later retry has begun
    MISSING = MISSING
    DAMAGED = "damaged"  # raised as `JobUnreadableError`


class RebuildAnswer(StrEnum):
    """Of `rebuild.lua`."""

    REBUILT = "rebuilt"  # also to a repetition
    EXISTS = "exists"  # the ledger knows the job
    TAKEN = "taken"  # a later rebuild has begun
