"""Reads JSON into a shape, and says what is wrong with it as OpenAI does: `param` names the place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from clipfleet.errors import problem_text
from clipfleet_gateway.errors import ApiError, invalid

_Shape = TypeVar("_Shape", bound=BaseModel)
_SHOWN_CHARACTERS = 200


class Shape(BaseModel):
    """A body, or a part of one. Fields that are not known are ignored: official clients send more."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class StrictShape(BaseModel):
    """A part of a body in which an unknown field would change the meaning."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def parsed(shape: type[_Shape], body: bytes | str) -> _Shape:
    """Read a body. Raises `ApiError`, which names the first problem."""
    try:
        return shape.model_validate_json(body)
    except ValidationError as error:
        raise problem_of(error) from None


def problem_of(error: ValidationError) -> ApiError:
    """The first problem of a body."""
    problem = error.errors(include_url=False)[0]
    if problem["type"] == "json_invalid":
        return invalid(f"The body is not JSON: {problem['ctx']['error']}", code="invalid_json")
    param = _param(problem["loc"])
    if isinstance(problem["input"], str):  # it may be a whole image
        problem["input"] = problem["input"][:_SHOWN_CHARACTERS]
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
