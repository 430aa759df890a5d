"""What every answer has in its head, streamed ones too; HEAD; and streams that fail in the middle."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pyarrow as pa
import pytest
from aiohttp.test_utils import TestServer

from clipfleet.errors import OutputUnavailableError
from clipfleet_gateway.files.record import Purpose
from clipfleet_gateway.services import Services
from clipfleet_gateway.web.app import make_app
from clipfleet_gateway.web.connections import connection_factory
from tests.support.gateway_app import asking, gateway_services
from tests.support.raw_requests import send_raw

CONTENT = b"0123456789abcdef" * 65_536  # of several pieces


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    with gateway_services(str(tmp_path / "gateway")) as services:
        yield services


@pytest.fixture
def content(services: Services) -> str:
    """Path of the content of a file of the key `mine`."""
    received = services.files.receive()
    try:
        received.write(CONTENT)
        saved = services.files.save("mine", received, filename="a", purpose=Purpose.USER_DATA)
    finally:
        received.close()
    return f"/v1/files/{saved.id}/content"


def raw(services: Services, *lines: str) -> bytes:
    """The bytes that a gateway answers with, without those of the head that name the time or the request."""

    async def ask() -> bytes:
        app = make_app(services)
        async with TestServer(app) as server:
            answer = await asyncio.to_thread(
                send_raw, f"127.0.0.1:{server.port}", "\r\n".join([*lines, "", ""]).encode()
            )
            return answer.data

    return asyncio.run(ask())


@pytest.mark.parametrize("path", ["/healthz", "/v1/files", "/v1/nothing", "CONTENT"])
@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize("is_known", [True, False])
def test_every_answer_has_an_id_and_names_no_version(
    services: Services, content: str, path: str, method: str, is_known: bool
) -> None:
    async def ask() -> None:
        async with asking(services, services.keys.add("mine") if is_known else "") as client:
            asked = client.request(method, content if path == "CONTENT" else path)
            async with asked as response:
                await response.read()
        assert response.headers["x-request-id"].startswith("req_")
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["Server"] == "clipfleet"

    asyncio.run(ask())


def test_what_is_no_http_is_answered_alike() -> None:
    async def ask() -> bytes:
        async def nothing(_: aiohttp.web.BaseRequest) -> aiohttp.web.StreamResponse:
            raise AssertionError

        runner = aiohttp.web.ServerRunner(server := aiohttp.web.Server(nothing))
        await runner.setup()
        listening = await asyncio.get_running_loop().create_server(
            connection_factory(server, 10), "127.0.0.1", 0
        )
        port = listening.sockets[0].getsockname()[1]
        try:
            return (await asyncio.to_thread(send_raw, f"127.0.0.1:{port}", b"nonsense\r\n\r\n")).data
        finally:
            listening.close()
            await runner.cleanup()

    head = asyncio.run(ask()).partition(b"\r\n\r\n")[0]

    assert head.startswith(b"HTTP/1.1 400") or head.startswith(b"HTTP/1.0 400")
    assert b"\r\nServer: clipfleet\r\n" in head and b"nosniff" in head


@pytest.mark.parametrize("path", ["/healthz", "/v1/files", "/v1/files/file-0", "CONTENT"])
def test_head_is_get_without_a_body(services: Services, content: str, path: str) -> None:
    token = services.keys.add("mine")

    def ask(method: str) -> tuple[set[bytes], bytes]:
        line = f"{method} {content if path == 'CONTENT' else path} HTTP/1.1"
        answer = raw(services, line, "Host: localhost", f"Authorization: Bearer {token}", "Connection: close")
        head, _, body = answer.partition(b"\r\n\r\n")
        changing = b"x-request-id", b"Date"
        return {one for one in head.split(b"\r\n") if not one.startswith(changing)}, body

    (got, body), (head, no_body) = ask("GET"), ask("HEAD")

    assert head == got
    assert body and not no_body


class FailingFile:
    """A content whose second piece cannot be read."""

    def __init__(self, error: Exception) -> None:
        self._pieces: list[bytes | Exception] = [error, CONTENT[:1000]]

    def read(self, _: int) -> bytes:
        piece = self._pieces.pop()
        if isinstance(piece, Exception):
            raise piece
        return piece

    def close(self) -> None:
        """Nothing to close."""


@pytest.mark.parametrize(
    "error", [OutputUnavailableError("away"), OSError("torn"), pa.ArrowInvalid("torn"), ZeroDivisionError()]
)
def test_a_stream_that_fails_in_the_middle_is_cut(
    services: Services, content: str, error: Exception,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    token = services.keys.add("mine")
    monkeypatch.setattr(services.files, "content", lambda *_: FailingFile(error))

    async def ask() -> str:
        async with asking(services, token) as client, client.get(content) as response:
            assert response.status == 200
            assert await response.content.readexactly(1000) == CONTENT[:1000]
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.content.read()
            return response.headers["x-request-id"]

    with caplog.at_level(logging.WARNING):
        request_id = asyncio.run(ask())

    assert request_id in caplog.text


def test_an_answer_that_passes_no_guard_has_a_head_too(services: Services) -> None:
    answer = raw(
        services, "POST /v1/nothing HTTP/1.1", "Host: localhost", "Expect: cake", "Connection: close"
    )

    assert answer.startswith(b"HTTP/1.1 417 ")
    assert b"\r\nServer: clipfleet\r\n" in answer and b"\r\nx-request-id: req_" in answer
