"""Bodies that are too large, too slow or packed, and connections beyond the bound."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from clipfleet_gateway.web import connections, guards
from clipfleet_gateway.web.connections import connection_factory
from clipfleet_gateway.web.received import body_guard
from clipfleet_gateway.web.received.body_guard import Pace, bodies, expect_later

MOST_FILE_BYTES, MOST_BODY_BYTES = 5_000_000, 1000
HEAD = b"POST %b HTTP/1.1\r\nHost: localhost\r\n"
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


@pytest.fixture(autouse=True)
def _lingers_shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_LINGERING_SECONDS", 0.1)


async def _read(request: web.Request) -> web.Response:
    return web.json_response({"length": len(await request.content.read())})


@asynccontextmanager
async def server(pace: Pace, most: int) -> AsyncIterator[int]:
    app = web.Application(
        middlewares=[guards.answering(), bodies(MOST_FILE_BYTES, pace)], client_max_size=MOST_BODY_BYTES
    )
    for path in ("/v1/files", "/v1/body"):
        app.router.add_post(path, _read, expect_handler=expect_later)
    runner = web.AppRunner(app)
    await runner.setup()
    assert runner.server is not None
    listening = await asyncio.get_running_loop().create_server(
        connection_factory(runner.server, most), "127.0.0.1", 0
    )
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        await runner.cleanup()


def answers(*sent: bytes, pace: Pace = body_guard.DEFAULT_PACE, most: int = 10) -> list[bytes]:
    """What some connections that stay open until the end are answered, each up to the end of its answer."""

    async def talk() -> list[bytes]:
        found, writers = [], []
        async with server(pace, most) as port:
            for one in sent:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writers.append(writer)
                writer.write(one)
                found.append(await asyncio.wait_for(reader.readuntil(b"}"), 60))
            for writer in writers:
                writer.close()
        return found

    return asyncio.run(talk())


def request(path: bytes, *headers: bytes, body: bytes = b"") -> bytes:
    return HEAD % path + b"".join(one + b"\r\n" for one in headers) + b"\r\n" + body


def test_a_body_that_is_too_large_is_refused_before_it_is_sent() -> None:
    (answer,) = answers(request(b"/v1/body", b"Content-Length: 1073741824"))

    assert answer.startswith(b"HTTP/1.1 413 ") and b'"body_too_large"' in answer


def test_a_file_may_be_larger_up_to_a_bound() -> None:
    small, large = answers(
        request(b"/v1/files", b"Content-Length: 2000", body=b"x" * 2000),
        request(b"/v1/files", b"Content-Length: %d" % (2 * MOST_FILE_BYTES)),
    )

    assert b'{"length": 2000}' in small
    assert large.startswith(b"HTTP/1.1 413 ")


def test_a_packed_body_is_refused() -> None:
    (answer,) = answers(
        request(b"/v1/body", b"Content-Length: 10", b"Content-Encoding: gzip", body=b"x" * 10)
    )

    assert answer.startswith(b"HTTP/1.1 415 ") and b'"unsupported_encoding"' in answer


@pytest.mark.parametrize(
    "pace",
    [Pace(idle_seconds=1), Pace(spare_seconds=0.1, bytes_per_second=100)],
    ids=["nothing arrives", "too little arrives"],
)
def test_a_body_that_arrives_too_slowly(monkeypatch: pytest.MonkeyPatch, pace: Pace) -> None:
    monkeypatch.setattr(body_guard, "_LOOK_SECONDS", 0.5)

    (answer,) = answers(request(b"/v1/body", b"Content-Length: 100", body=b"x" * 10), pace=pace)

    assert answer.startswith(b"HTTP/1.1 408 ") and b'"body_timeout"' in answer
    assert b"\r\nConnection: close\r\n" in answer


def test_a_client_that_waits_is_let_continue_once_it_has_passed() -> None:
    waits = b"Expect: 100-continue"
    passed, refused, odd, unknown = answers(
        request(b"/v1/body", waits, b"Content-Length: 5", body=b"hello"),
        request(b"/v1/body", waits, b"Content-Length: 5000"),
        request(b"/v1/body", b"Expect: 200-ok", b"Content-Length: 5"),
        request(b"/v1/nothing", waits, b"Content-Length: 5", body=b"hello"),
    )

    assert passed.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ") and b'{"length": 5}' in passed
    assert refused.startswith(b"HTTP/1.1 413 ")
    assert odd.startswith(b"HTTP/1.1 417 ") and b'"unknown_expectation"' in odd
    assert unknown.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 ")


def test_what_is_no_http_is_answered_as_all_errors_are(caplog: pytest.LogCaptureFixture) -> None:
    found = answers(b"\x16\x03\x01\x02\x00\x01\r\n\r\n", request(b"/v1/body", b"Content-Length: 5, 5"))

    assert all(b" 400 " in answer and b'"malformed_request"' in answer for answer in found)
    assert all(record.exc_info is None for record in caplog.records)


def test_connections_beyond_the_bound_are_refused() -> None:
    post = request(b"/v1/body", b"Content-Length: 2", body=b"ab")

    first, second, third = answers(post, post, post, most=2)

    assert first.startswith(b"HTTP/1.1 200 ") and second.startswith(b"HTTP/1.1 200 ")
    assert third.startswith(b"HTTP/1.1 503 ") and b"Retry-After: 5\r\n" in third
    assert b'"unavailable"' in third
