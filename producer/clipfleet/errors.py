"""The exceptions a caller may see.

    ClipfleetError
    ├── UsageError             the request is invalid: fix the call
    │   ├── SourceError            the source cannot be read, or holds no images
    │   │   └── SourceChangedError     it differs from what an earlier submit of this job staged
    │   ├── JobConflictError       this job id belongs to a job that differs
    │   ├── OutputConflictError    the output already holds another job
    │   ├── JobNotFoundError       no job with this id, no output at this path
    │   ├── JobUnreadableError     the job description is of another version, or damaged
    │   │   └── JobTooNewError         of a newer version
    │   ├── QuotaExceededError     the quota is used up: submit later, or raise it
    │   ├── TooManyItemsError      more than Redis keeps per job: give an output
    │   ├── ResultsNotReadyError   no part has been written yet
    │   ├── SignatureError         a webhook request was not signed with this secret, or is too old
    │   └── ResultsExpiredError    the rows in Redis have expired
    └── WorldError             an external failure: retrying later may help
        ├── RedisUnavailableError  no Redis responds at the configured address
        ├── SourceUnavailableError the source cannot be read now
        └── OutputUnavailableError the output cannot be read or written now
            └── OutputUnreachableError  until settings or mounts change
                ├── OutputRefusedError      until this worker's settings, or the job, change
                ├── OutputDamagedError      an object has unexpected content
                └── OutputTooNewError       the job or its items were written by a newer clipfleet

Every message names the object and the way out. Options stand between backticks as Python writes them
(`overwrite=True`); `terminal.console` turns them into those of the command line. A failure of a single image
is never an exception but a row with an `ErrorCode`.
"""

from __future__ import annotations

import reprlib
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError
from pydantic_core import ErrorDetails


class ClipfleetError(Exception):
    """Base of all exceptions of this project."""


class UsageError(ClipfleetError):
    """The request is invalid."""


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
    """This version cannot read the description of a job."""


class TooManyItemsError(UsageError):
    """The job has more items than Redis keeps per job."""


class JobTooNewError(JobUnreadableError):
    """A newer version of clipfleet wrote the description of the job."""


class QuotaExceededError(UsageError):
    """The quota for pending work is used up."""


class ResultsExpiredError(UsageError):
    """The rows of a job in Redis have expired."""


class ResultsNotReadyError(UsageError):
    """The job has no rows yet."""


class SignatureError(UsageError):
    """A webhook request was not signed with this secret, or not within the last minutes."""


class WorldError(ClipfleetError):
    """An external failure; the same call may succeed later."""


class RedisUnavailableError(WorldError):
    """No Redis responds at the configured address."""


class SourceUnavailableError(WorldError):
    """The source cannot be read at the moment (store unavailable)."""


class OutputUnavailableError(WorldError):
    """The output cannot be read or written at the moment (disk full, store unavailable)."""


class OutputUnreachableError(OutputUnavailableError):
    """The output stays unreachable: a mount, a permission or a setting is missing."""


class OutputRefusedError(OutputUnreachableError):
    """This worker cannot use the output until its settings, or the job, are changed."""


class OutputDamagedError(OutputUnreachableError):
    """An object of the output is readable but has unexpected content."""


class OutputTooNewError(OutputUnreachableError):
    """A newer version of clipfleet wrote it: update this one."""


_SHOWN_CHARACTERS = 60
_BRIEF = reprlib.Repr()  # of a value that may be a whole file
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = 200
_KINDS = {  # by pydantic's type of a problem
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
}


def problem_text(problem: ErrorDetails) -> str:
    """What is wrong with a value, in plain words."""
    shown = textwrap.shorten(_BRIEF.repr(problem["input"]), _SHOWN_CHARACTERS, placeholder="...")
    limits = problem.get("ctx", {})
    match problem["type"]:
        case "enum" | "literal_error":
            return f"{shown} is not one of {limits['expected']}"
        case "greater_than" | "greater_than_equal":
            return (
                f"{shown} is less than {limits['ge']}"
                if "ge" in limits
                else f"{shown} is not above {limits['gt']}"
            )
        case "less_than" | "less_than_equal":
            return (
                f"{shown} is more than {limits['le']}"
                if "le" in limits
                else f"{shown} is not below {limits['lt']}"
            )
        case "string_too_long":
            return f"{shown} has more than {limits['max_length']:,} characters: shorten it"
        case "too_short" | "too_long":  # pydantic's words, without its name of the type
            _, _, bound = problem["msg"].partition(" should have ")
            return f"must have {bound.replace(' after validation', '')}"
        case "finite_number":
            return f"{shown} is not a finite number"
        case "missing" | "extra_forbidden":
            return "it is missing" if problem["type"] == "missing" else "the name is unknown"
        case kind if kind in _KINDS:
            return f"{shown} is not {_KINDS[kind]}"
        case _:
            return problem["msg"].removeprefix("Value error, ")


def first_problem(error: ValidationError) -> str:
    """The first problem, after the path of its value."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem_text(problem)}" if where else problem_text(problem)


@contextmanager
def usage_errors(where: str = "") -> Iterator[None]:
    """Turn validation errors into `UsageError`; `where` is the prefix of its message."""
    try:
        yield
    except ValidationError as error:
        raise UsageError(where + first_problem(error)) from None
    except (UsageError, ValueError) as error:
        raise UsageError(f"{where}{error}") from None
