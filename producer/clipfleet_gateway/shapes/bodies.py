"""Reads JSON into a shape, and says what is wrong with it as OpenAI does: `param` names the place."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from clipfleet.errors import problem_text
from clipfleet_gateway.errors import ApiError, invalid

_Shape = TypeVar("_Shape", bound=BaseModel)
MOST_VALUES = 500_000  # of a body: each costs a hundred bytes, or several, of memory
_MOST_ERRORS = 1000  # that are looked at: each costs a kilobyte


class Shape(BaseModel):
    """A body, or a part of one. Fields that are not known are ignored: official clients send more."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class StrictShape(BaseModel):
    """A part of a body in which an unknown field would change the meaning."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def parsed(shape: type[_Shape], body: bytes) -> _Shape:
    """Read a body. Raises `ApiError`, which names the first problem."""
    require_few_values(body)
    try:
        return shape.model_validate_json(body)
    except ValidationError as error:
        raise problem_of(error) from None


def require_few_values(body: bytes) -> None:
    """Check that reading some JSON takes little memory. Raises `ApiError` (413)."""
    if _separators(body) > MOST_VALUES:  # else there is no need to look where texts begin and end
        text = body.replace(rb"\\", b"").replace(rb"\"", b"")
        if text.count(b'"') > 4 * MOST_VALUES or _separators(b"".join(text.split(b'"')[::2])) > MOST_VALUES:
            raise invalid(
                f"The JSON has more than {MOST_VALUES:,} values: send less, or a list as a file",
                code="too_many_values", status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            )  # fmt: skip


def _separators(text: bytes) -> int:
    return sum(map(text.count, (b",", b"[", b"{")))


def problem_of(error: ValidationError) -> ApiError:
    """The first problem of a body. Lists end at theirs (`fail_fast`), so that few are found."""
    if error.error_count() > _MOST_ERRORS:
        return invalid(f"The body is wrong in {error.error_count():,} places")
    problem = error.errors(include_url=False)[0]
    if problem["type"] == "json_invalid":
        return invalid(f"The body is not JSON: {problem['ctx']['error']}", code="invalid_json")
    param = _param(problem["loc"])
    words = problem_text(problem)
    return invalid(f"{param}: {words}" if param else words, param)


def _param(place: Sequence[int | str]) -> str | None:
    """The place as it is written in a program: `input[3].image`. Tags of unions, in <>, are left out."""
    text = ""
    for part in place:
        if isinstance(part, int):
            text += f"[{part}]"
        elif not part.startswith("<"):
            text += f".{part}" if text else part
    return text or None
