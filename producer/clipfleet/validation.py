"""What pydantic finds wrong with a value, in words for people."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from clipfleet.errors import UsageError


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
