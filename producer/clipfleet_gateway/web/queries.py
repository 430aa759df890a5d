"""Parameters of a request outside its body: in the URL, read into a shape, and the Idempotency-Key."""

from __future__ import annotations

import re
from typing import TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from clipfleet_gateway.errors import invalid
from clipfleet_gateway.shapes.bodies import problem_of

IDEMPOTENCY_KEY = "Idempotency-Key"
_PRINTABLE = re.compile(r"[\x20-\x7e]{1,255}")
_Query = TypeVar("_Query", bound=BaseModel)


def query_of(request: web.Request, shape: type[_Query]) -> _Query:
    """The parameters of a request. Raises `ApiError`, which names the first problem."""
    for name in shape.model_fields:
        if len(request.query.getall(name, [])) > 1:
            raise invalid(f"{name}: it is given more than once", name)
    try:
        return shape.model_validate(dict(request.query))
    except ValidationError as error:
        raise problem_of(error) from None


def idempotency_key(request: web.Request) -> str | None:
    """What the client names the act by; None if it does not. Raises `ApiError`."""
    given = request.headers.getall(IDEMPOTENCY_KEY, [])
    if len(given) > 1 or (given and not _PRINTABLE.fullmatch(given[0])):
        raise invalid(f"Give one {IDEMPOTENCY_KEY} of at most 255 printable characters", IDEMPOTENCY_KEY)
    return given[0] if given else None
