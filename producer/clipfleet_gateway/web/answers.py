"""Answers as JSON or piece by piece, and errors as OpenAI writes them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from aiohttp import hdrs, web
from pydantic import BaseModel

from clipfleet.errors import (
    ClipfleetError,
    JobConflictError,
    JobNotFoundError,
    QuotaExceededError,
    UsageError,
    WorldError,
)
from clipfleet_gateway.errors import ApiError, invalid, limited, not_found, unavailable

_LOG = logging.getLogger(__name__)
_QUOTA_RETRY_SECONDS = 10
# In the head of every answer. aiohttp would name its version and that of Python.
HEAD = {hdrs.SERVER: "clipfleet", "x-content-type-options": "nosniff"}


def answer(found: BaseModel, status: int = 200) -> web.Response:
    """A JSON answer; fields without a value are null, as the official clients expect."""
    return web.Response(text=found.model_dump_json(), status=status, content_type="application/json")


async def stream(
    request: web.Request, response: web.StreamResponse, next_piece: Callable[[], Awaitable[bytes | None]]
) -> web.StreamResponse:
    """Send pieces until one is empty or None. A failure after the first one is one of `guards.answering`."""
    piece = await next_piece()
    await response.prepare(request)
    while piece and request.method != hdrs.METH_HEAD:
        await response.write(piece)
        piece = await next_piece()
    await response.write_eof()
    return response


def refusal(error: ApiError) -> web.Response:
    """The answer to a request that cannot be served."""
    response = answer(error.body(), int(error.status))
    response.headers.update(error.headers)
    return response


def as_api_error(error: ClipfleetError) -> ApiError:
    """What an error of a job says to the one who asked for it. Troubles of this side are logged."""
    if isinstance(error, JobNotFoundError):
        return not_found("job", str(error))
    if isinstance(error, QuotaExceededError):
        return limited(str(error), _QUOTA_RETRY_SECONDS, "quota_exceeded")
    if isinstance(error, JobConflictError):
        return invalid(str(error), code="conflict")
    if isinstance(error, UsageError):
        return invalid(str(error))
    _LOG.warning("a request could not be served: %s", error)
    message = "Redis or the gateway's place is away" if isinstance(error, WorldError) else "internal trouble"
    return unavailable(f"{message}: try again")
