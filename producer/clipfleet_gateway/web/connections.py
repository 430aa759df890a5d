"""Connections: how many there are, what is not HTTP, and answers that nobody reads.

A head that does not arrive in time ends with the keep-alive time, and slow bodies in `body_guard`.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import Callable
from http import HTTPStatus
from typing import cast

from aiohttp import web
from typing_extensions import override

from clipfleet_gateway.errors import invalid, unavailable
from clipfleet_gateway.web.answers import HEAD, refusal

_KEPT_ALIVE_SECONDS = 75.0  # between two requests; longer than the 60 s of most load balancers
_LINGERING_SECONDS = (
    5.0  # in which the rest of a refused body is read and dropped, so that the answer arrives
)
MOST_CONNECTIONS = 4096
_OPEN_FILES_SHARE = 0.75  # the others are for Redis, the place, and scratch files
_UNREAD_SECONDS = 60.0  # in which nothing of an answer was read
_LOOK_SECONDS = 5.0
_LOG = logging.getLogger(__name__)


class Connection(web.RequestHandler):
    """Answers what is no HTTP as all errors are answered, without a traceback in the log."""

    __slots__ = ()

    @override
    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status == HTTPStatus.BAD_REQUEST:
            _LOG.info("%s sent what is no HTTP request: %s", request.remote, type(exc).__name__)
            response: web.StreamResponse = refusal(
                invalid("This is no HTTP request", code="malformed_request")
            )
            response.force_close()
        else:
            response = super().handle_error(request, status, exc, message)
        response.headers.update(HEAD)
        return response


class _Busy(asyncio.Protocol):
    """Refuses a connection."""

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        writable = cast(asyncio.WriteTransport, transport)
        writable.write(_busy_answer())
        writable.close()


def _busy_answer() -> bytes:
    answer = refusal(unavailable("This gateway has too many connections: try again"))
    answer.headers.update({**HEAD, "Connection": "close"})
    answer.headers["Content-Length"] = str(answer.content_length)
    lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in answer.headers.items()]
    return "\r\n".join([*lines, "", answer.text or ""]).encode()


def most_connections() -> int:
    """How many connections this process serves, as far as its bound of open files allows."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else int(soft * _OPEN_FILES_SHARE)
    return min(MOST_CONNECTIONS, room)


def connection_factory(server: web.Server, most: int) -> Callable[[], asyncio.BaseProtocol]:
    """What makes the protocol of each new connection; those beyond `most` are refused."""
    loop = asyncio.get_running_loop()

    def make() -> asyncio.BaseProtocol:
        if len(server.connections) >= most:
            return _Busy()
        return Connection(
            server, loop=loop, auto_decompress=False,
            keepalive_timeout=_KEPT_ALIVE_SECONDS, lingering_time=_LINGERING_SECONDS,
        )  # fmt: skip

    return make


async def abort_unread(server: web.Server) -> None:
    """Abort connections whose clients have stopped reading their answers, until it is cancelled."""
    seen: dict[web.RequestHandler, tuple[int, float]] = {}  # bytes to be sent, and seconds without progress
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        before, seen = seen, {}
        for connection in server.connections:
            transport = connection.transport
            waiting = transport.get_write_buffer_size() if transport is not None else 0
            if transport is None or not waiting:
                continue
            was, seconds = before.get(connection, (0, 0.0))
            seen[connection] = waiting, seconds + _LOOK_SECONDS if waiting == was else 0.0
            if seen[connection][1] >= _UNREAD_SECONDS:
                _LOG.info("a client has stopped reading its answer")
                transport.abort()
