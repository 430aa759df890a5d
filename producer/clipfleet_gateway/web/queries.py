"""Parameters in the URL, read into a shape."""

from __future__ import annotations

from typing import TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from clipfleet_gateway.errors import invalid
from clipfleet_gateway.shapes.bodies import problem_of

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
