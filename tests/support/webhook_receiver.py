"""A receiver of webhooks for tests, on a loopback port in a thread of its own; it can restart.

| path | answer |
|---|---|
| `/ok...` | 200 |
| `/status/<code>?after=SECONDS` | that status, with `Retry-After` if given; 3xx lead to `/ok/led-astray` |
| `/once/<code>?after=SECONDS` | the first request of each event gets that status, the others 200 |
| `/sometimes/<percent>` | as often, at random, one of 500, 503, a reset connection; else 200 |
| `/hang` | none |
| `/slow-body`, `/large-body` | 200 with a body that does not end soon; of 1 MiB |
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import struct
import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from aiohttp import web

from clipfleet.webhooks.signing import verify
from tests.support.http_site import CERTIFICATE

_RESET = 0  # instead of a status


@dataclass(frozen=True)
class Request:
    """One attempt that has arrived."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    status: int  # of the answer; 0: none

    @property
    def event_id(self) -> str:
        return self.headers["webhook-id"]

    def verified(self, secret: str) -> dict[str, Any]:
        """The event in it; raises if it is not signed with this secret."""
        return verify(self.body, self.headers, secret)


class WebhookReceiver:
    """Answers from `__enter__` on. What has arrived outlives a restart.

    Args:
        seed: of the answers of `/sometimes`.
        tls: speak https, with the certificate of `CERTIFICATE`.
    """

    def __init__(self, *, seed: int = 0, tls: bool = False) -> None:
        self.requests: list[Request] = []  # in the order of their answers
        self.open = 0  # requests being answered now
        self.most_open = 0
        self.connections: set[object] = set()
        self._random = random.Random(seed)
        self._tls = tls
        self._port = 0
        self._seen: defaultdict[str, int] = defaultdict(int)
        self._loop: asyncio.AbstractEventLoop
        self._stopping: asyncio.Event
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, after the first time at the same port."""
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(ready)), name="receiver", daemon=True
        )
        self._thread.start()
        assert ready.wait(30)

    def stop(self) -> None:
        """Drop all connections, and listen no more."""
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()
            self._thread = None

    def url(self, path: str) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}{path}"

    def ids(self, path: str) -> list[str]:
        """Event ids of what was taken (2xx) at a path, in that order."""
        return [one.event_id for one in self.requests if one.path == path and 200 <= one.status < 300]

    def at(self, path: str) -> list[Request]:
        """All requests at a path."""
        return [one for one in self.requests if one.path == path]

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=1 << 20)
        app.router.add_route("*", "/{rest:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        context = None
        if self._tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(CERTIFICATE)
        site = web.TCPSite(runner, "127.0.0.1", self._port, ssl_context=context, reuse_address=True)
        try:
            await site.start()
            self._port = runner.addresses[0][1]
            ready.set()
            await self._stopping.wait()
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            body = await request.read()
            self.connections.add(request.transport.get_extra_info("peername") if request.transport else None)
            self._seen[request.path + request.headers.get("webhook-id", "")] += 1
            status = self._status(request)
            if status is not None:
                self.requests.append(Request(request.path, dict(request.headers), body, status))
            return await self._respond(request, status)
        finally:
            self.open -= 1

    def _status(self, request: web.Request) -> int | None:
        """None: it hangs."""
        kind, _, value = request.path[1:].partition("/")
        if kind == "hang":
            return None
        if kind == "status":
            return int(value)
        if kind == "once":
            return int(value) if self._seen[request.path + request.headers["webhook-id"]] == 1 else 200
        if kind == "sometimes" and self._random.randrange(100) < int(value):
            return self._random.choice([500, 503, _RESET])
        return 200

    async def _respond(self, request: web.Request, status: int | None) -> web.StreamResponse:
        if status is None:
            await self._stopping.wait()
            return web.Response(status=500)
        if status == _RESET:
            _reset(request)
            return web.Response()
        headers = {}
        if "after" in request.query and status != 200:
            headers["Retry-After"] = request.query["after"]
        if 300 <= status < 400:
            headers["Location"] = "/ok/led-astray"
        if request.path == "/large-body":
            return web.Response(body=bytes(1 << 20))
        if request.path == "/slow-body":
            response = web.StreamResponse()
            await response.prepare(request)
            while not self._stopping.is_set():
                await response.write(b"x")
                await asyncio.sleep(0.05)
            return response
        return web.Response(status=status, headers=headers)


def _reset(request: web.Request) -> None:
    if request.transport is not None:
        linger = struct.pack("ii", 1, 0)  # RST instead of FIN
        request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        request.transport.close()
