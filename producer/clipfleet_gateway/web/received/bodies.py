"""Reads the JSON body of a request; what may take long in a thread, so that others are served."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from http import HTTPStatus
from typing import TypeVar

from aiohttp import web

from clipfleet_gateway.errors import invalid
from clipfleet_gateway.keys.prefixes import has_folders
from clipfleet_gateway.services import Services
from clipfleet_gateway.web.callers import CALLER
from clipfleet_gateway.web.received.held_bodies import HELD

T = TypeVar("T")
_LARGE_BYTES = 256 << 10


async def read_json(
    request: web.Request, services: Services, read: Callable[[bytes], T], most_bytes: int | None = None
) -> T:
    """What `read` makes of the body, see `shapes.bodies.parsed`. It may look at folders of the key.

    Args:
        request: whose body it is.
        services: whose threads it is read in.
        read: called once, in a thread if it may take long.
        most_bytes: of the body; None: as many as the application allows.

    Raises:
        ApiError: the body is not JSON by its content type, it is too large, or `read` refuses it.
    """
    if not (request.content_type.endswith("json") or "Content-Type" not in request.headers):
        raise invalid(
            f"The body is {request.content_type}: send JSON, with `Content-Type: application/json`",
            code="unsupported_media_type", status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        )  # fmt: skip
    key = request[CALLER]
    most_bytes = request.client_max_size if most_bytes is None else most_bytes
    with closing(request.app[HELD].begin(key.name)) as held:
        body = await held.read(request, most_bytes)
        # A slow folder keeps no thread from what needs none.
        in_thread = services.call if has_folders(key.sources) else services.ask
        if len(body) >= _LARGE_BYTES:
            async with request.app[HELD].turn(key.name):
                return await in_thread(read, body)
        return await in_thread(read, body) if has_folders(key.sources) else read(body)
