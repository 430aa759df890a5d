"""What a body must keep to before and while it is read: its size and its pace."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus

from aiohttp import hdrs, web

from clipfleet_gateway.errors import INVALID, ApiError, invalid
from clipfleet_gateway.web.operations import Handler, Middleware

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_UPLOADS = "/v1/files"  # the one body that is streamed
_MULTIPART_EXTRA_BYTES = 1 << 20  # around the file of an upload
_LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How slowly a body may arrive. 200 MB pass within two hours at the lowest rate."""

    idle_seconds: float = 30.0  # between two pieces
    spare_seconds: float = 60.0  # of the whole body, besides what the rate allows
    bytes_per_second: int = 32 << 10


DEFAULT_PACE = Pace()


async def expect_later(_: web.Request) -> None:
    """Send no `100 Continue` before the request has passed all guards; see `bodies`."""


def bodies(most_file_bytes: int, pace: Pace = DEFAULT_PACE) -> Middleware:
    """Refuses bodies that are too large before they are read, and those that arrive too slowly.

    Args:
        most_file_bytes: of an upload of a file, which is not held in memory. Others have the bound of the
            application.
        pace: of all bodies.
    """

    @web.middleware
    async def read_body(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not request.body_exists:
            return await handler(request)
        is_upload = request.path == _UPLOADS
        most = most_file_bytes + _MULTIPART_EXTRA_BYTES if is_upload else request.client_max_size
        length = request.content_length
        if length is not None and length > most:
            raise body_too_large(most_file_bytes if is_upload else most, is_upload=is_upload)
        if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
            raise invalid(
                "Send the body without Content-Encoding", code="unsupported_encoding",
                status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            )  # fmt: skip
        with _watched(request, pace):
            await _let_continue(request)
            return await handler(request)

    return read_body


async def _let_continue(request: web.Request) -> None:
    expected = request.headers.get(hdrs.EXPECT)
    if expected is None or request.match_info.http_exception is not None:  # which aiohttp lets continue
        return
    if expected.lower() != "100-continue":
        raise invalid(
            "The only Expect header that is served is 100-continue", code="unknown_expectation",
            status=HTTPStatus.EXPECTATION_FAILED,
        )  # fmt: skip
    if request.version >= (1, 1):
        await request.writer.write(_CONTINUE)
        request.writer.output_size = 0  # it is no part of the answer


@contextmanager
def _watched(request: web.Request, pace: Pace) -> Iterator[None]:
    """Let whoever reads the body fail with 408 once it arrives too slowly."""
    if request.content.is_eof():
        yield
        return
    watch = asyncio.create_task(_watch(request, pace))
    try:
        yield
    finally:
        watch.cancel()


async def _watch(request: web.Request, pace: Pace) -> None:
    content = request.content
    seen_bytes, idle_seconds, read_seconds = 0, 0.0, 0.0
    while not content.is_eof():
        await asyncio.sleep(_LOOK_SECONDS)
        if request.transport is not None and request.transport.is_reading():  # else it is us who are slow
            idle_seconds = idle_seconds + _LOOK_SECONDS if content.total_bytes == seen_bytes else 0.0
            read_seconds += _LOOK_SECONDS
        seen_bytes = content.total_bytes
        allowed_seconds = pace.spare_seconds + seen_bytes / pace.bytes_per_second
        if idle_seconds >= pace.idle_seconds or read_seconds >= allowed_seconds:
            content.set_exception(_too_slow())
            return


def body_too_large(most_bytes: int, *, is_upload: bool = False) -> ApiError:
    """The body, or the file that is uploaded, is too large."""
    what, param, code = ("file", "file", "file_too_large") if is_upload else ("body", None, "body_too_large")
    message = f"The {what} has more than {most_bytes:,} bytes"
    return invalid(message, param, code, status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE)


def _too_slow() -> ApiError:
    return ApiError(
        HTTPStatus.REQUEST_TIMEOUT, "The body arrives too slowly", INVALID, code="body_timeout",
        headers={hdrs.CONNECTION: "close"},
    )  # fmt: skip
