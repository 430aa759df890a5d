"""Reads the JSON body of a request; what may take long in a thread, so that others are served."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import TypeVar

from aiohttp import web

from clipfleet_gateway.errors import invalid
from clipfleet_gateway.keys.prefixes import has_folders
from clipfleet_gateway.services import Services
from clipfleet_gateway.web.callers import CALLER

T = TypeVar("T")
_LARGE_BYTES = 256 << 10


async def read_json(request: web.Request, services: Services, read: Callable[[bytes], T]) -> T:
    """What `read` makes of the body, see `shapes.bodies.parsed`. It may look at folders of the key.

    Raises:
        ApiError: the body is not JSON by its content type, or `read` refuses it.
    """
    if not (request.content_type.endswith("json") or "Content-Type" not in request.headers):
        raise invalid(
            f"The body is {request.content_type}: send JSON, with `Content-Type: application/json`",
            code="unsupported_media_type", status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        )  # fmt: skip
    body = await request.read()
    if has_folders(request[CALLER].sources):
        return await services.call(read, body)  # a slow folder keeps no thread from what needs none
    return read(body) if len(body) < _LARGE_BYTES else await services.ask(read, body)
