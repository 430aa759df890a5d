"""The exceptions a caller may see.

    ClipfleetError
    ├── UsageError             the caller asked for something that cannot be: fix the call
    │   ├── SourceError            the source cannot be read, or holds no images
    │   │   └── SourceChangedError     it differs from what an earlier submit of this job staged
    │   ├── JobConflictError       this job id belongs to a job that differs
    │   ├── OutputConflictError    the output already holds another job
    │   ├── JobNotFoundError       no job of this id, no output at this path
    │   ├── JobUnreadableError     the job was described by another version of clipfleet, or by none
    │   │   └── JobTooNewError         by a newer one
    │   ├── QuotaExceededError     the ledger holds as much as it may: later, or with a higher quota
    │   ├── TooManyItemsError      more than Redis keeps of one job: give an --output
    │   ├── ResultsNotReadyError   no part has been written yet
    │   └── ResultsExpiredError    the rows were in Redis, and the time is over for which it kept them
    └── WorldError             the world failed: trying again later may help
        ├── RedisUnavailableError  no Redis answers at the configured address
        ├── SourceUnavailableError the source cannot be read now
        └── OutputUnavailableError the output cannot be read or written now
            └── OutputUnreachableError  not without a change of settings or mounts
                ├── OutputDamagedError      an object in it holds something else than it should
                └── OutputTooNewError       the job or its items were written by a newer clipfleet

Every message names the thing and the way out. What is wrong with a single image is never an exception here:
it is a row with an `ErrorCode`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError
from pydantic_core import ErrorDetails


class ClipfleetError(Exception):
    """Root of all exceptions of this project."""


class UsageError(ClipfleetError):
    """The request cannot be carried out as it was made."""


class SourceError(UsageError):
    """The source cannot be read, or holds no images."""


class SourceChangedError(SourceError):
    """The source differs from what an earlier, interrupted submit of the same job staged."""


class JobConflictError(UsageError):
    """The job id is taken by a job whose task, model, label set, source or output differs."""


class OutputConflictError(UsageError):
    """The output already holds another job."""


class JobNotFoundError(UsageError):
    """No such job, or no such output."""


class JobUnreadableError(UsageError):
    """The description of a job is not one that this version understands."""


class TooManyItemsError(UsageError):
    """A job for Redis has more items than Redis keeps of one job."""


class JobTooNewError(JobUnreadableError):
    """A newer version of clipfleet described the job."""


class QuotaExceededError(UsageError):
    """So much waits to be done that nothing more may be submitted now."""


class ResultsExpiredError(UsageError):
    """The rows of a job were in Redis, and are gone."""


class ResultsNotReadyError(UsageError):
    """The job has no part yet."""


class WorldError(ClipfleetError):
    """Something outside this program failed; the same call may succeed later."""


class RedisUnavailableError(WorldError):
    """No Redis answers at the configured address."""


class SourceUnavailableError(WorldError):
    """The source cannot be read at the moment (store away)."""


class OutputUnavailableError(WorldError):
    """The output cannot be read or written at the moment (disk full, store away)."""


class OutputUnreachableError(OutputUnavailableError):
    """The output will not become reachable by waiting: a mount, a right or a setting is missing."""


class OutputDamagedError(OutputUnreachableError):
    """An object of the output can be read, but does not hold what its name says."""


class OutputTooNewError(OutputUnreachableError):
    """A newer version of clipfleet wrote it: update this one, or leave the job to others."""


def problem_text(problem: ErrorDetails) -> str:
    """One problem, without pydantic's own words before a message of ours."""
    return problem["msg"].removeprefix("Value error, ")


def first_problem(error: ValidationError) -> str:
    """The first problem, and the way to the value that has it."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem_text(problem)}" if where else problem_text(problem)


@contextmanager
def usage_errors(where: str = "") -> Iterator[None]:
    """Make a `UsageError` of what is wrong with a value; `where` begins its message."""
    try:
        yield
    except ValidationError as error:
        raise UsageError(where + first_problem(error)) from None
    except (UsageError, ValueError) as error:
        raise UsageError(f"{where}{error}") from None
