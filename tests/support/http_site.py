"""A web site for tests, on a free loopback port in a thread of its own: files of a folder, and ways to fail.

| path | answer |
|---|---|
| `/files/<name>` | a file of the folder |
| `/sick/<name>` | 500 until `heal` is called, then a file of the folder, so often as it allows |
| `/bare/<name>` | a file of the folder, without ETag and Last-Modified, which `/files/` has |
| `/versioned?etag=E&modified=M&later=L` | 304 if the request names them (with the ETag `L`), else the image |
| `/alike/<name>` | a file of the folder, whose ETag is the attribute `etag`; 304 if that is asked for |
| `/held/<name>` | a file of the folder: a byte a second until `heal` allows the rest |
| `/status/<code>` | that status with a short body |
| `/flaky/<status>/<times>?after=SECONDS` | so many times that status, then 200; with `Retry-After` |
| `/html`, `/empty` | 200 with a page, with nothing |
| `/bytes/<count>` | that many bytes, with Content-Length |
| `/chunked/<count>` | that many bytes, without Content-Length |
| `/encoded/<how>` | the word `image`: gzip, zlib, raw-deflate, broken, cut, empty; others only declared |
| `/bomb` | 64 MiB of zeros in 64 KiB of gzip |
| `/truncated`, `/reset`, `/bad-chunk` | the body breaks off: closed early, reset, chunks that are none |
| `/reset-early` | the connection is reset before an answer |
| `/nonsense` | not HTTP |
| `/big-header` | a header line of 100 kB |
| `/loop` | redirects to itself |
| `/redirects/<count>` | that many redirects, then `/html` |
| `/redirect?to=URL&status=302` | a redirect |
| `/cookie` | sets one |
| `/tagged?tag=VALUE&status=200` | with an `X-Robots-Tag` for each `tag` |
| `/robots.txt` | the attribute `robots_txt`: text, or the status instead of it |
| `/late/<name>` | the image, after a tenth of a second |
| `/stall`, `/drip`, `/endless` | no answer; a byte now and then; a body without end |
| `/meet/<count>` | waits until so many are here together, then answers all of them |
| `/echo` | the request as JSON: path with query as sent, headers |
"""

from __future__ import annotations

import asyncio
import gzip
import math
import socket
import ssl
import struct
import threading
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

from aiohttp import web

CERTIFICATE = Path(__file__).with_name("localhost.pem")
_DRIP_SECONDS = 0.02
_LATE_SECONDS = 0.1
_IMAGE = b"picture"
_BROKEN_OFF = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly the beginning"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_FIXED: dict[str, dict[str, Any]] = {
    "/html": {"text": "<html>no image</html>", "content_type": "text/html"},
    "/empty": {},
    "/big-header": {"body": _IMAGE, "headers": {"X-Big": "x" * 100_000}},
    "/cookie": {"body": _IMAGE, "headers": {"Set-Cookie": "visitor=1; Path=/"}},
}
# What is sent before the connection ends, and whether it is reset.
_RAW = {
    "/truncated": (_BROKEN_OFF, False),
    "/reset": (_BROKEN_OFF, True),
    "/bad-chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n", False),
    "/reset-early": (b"", True),
    "/nonsense": (b"220 smtp.test ready\r\n\r\n", False),
}


class HttpSite:
    """Answers from `__enter__` on; `__exit__` drops all connections.

    Args:
        folder: what `/files/` serves; None serves nothing there.
        host: a loopback address.
        port: 0 takes a free one.
        tls: speak https, with the certificate of `CERTIFICATE`.
    """

    def __init__(
        self, folder: Path | None = None, *, host: str = "127.0.0.1", port: int = 0, tls: bool = False
    ) -> None:
        self.requests: Counter[str] = Counter()  # by path, without the query
        self.answers: Counter[int] = Counter()  # by status
        self.connections: set[object] = set()  # one entry for each connection that carried a request
        self.user_agents: set[str] = set()
        self.robots_txt: str | int = 404
        self.etag = '"v1"'
        self.active = 0  # requests being answered now
        self.most_active = 0
        self._answers_left: float = 0  # of `/sick/`, once it is healed
        self._is_healed = False
        self._folder = folder
        self._host = host
        self._port = port
        self._tls = tls
        self._meeting: list[asyncio.Future[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="http-site", daemon=True)
        self._ready = threading.Event()
        self._stopping = asyncio.Event()
        self._runner = web.AppRunner(self._app(), access_log=None, shutdown_timeout=1.0)
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive() and self._loop is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()

    @property
    def port(self) -> int:
        """The port that was taken."""
        return self._port

    @property
    def open_connections(self) -> int:
        """Connections that neither side has closed."""
        return len(self._runner.server.connections) if self._runner.server else 0

    def heal(self, answers: float = math.inf) -> None:
        """From now on `/sick/` answers like `/files/`: so many times more, then it lets its clients wait."""
        self._is_healed = True
        self._answers_left += answers

    @property
    def has_answered_all(self) -> bool:
        """Whether everything that `heal` allowed has been asked for."""
        return self._answers_left < 1

    def url(self, path: str) -> str:
        """URL of a path that begins with a slash."""
        return f"{'https' if self._tls else 'http'}://{self._host}:{self._port}{path}"

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as failure:  # handed to the thread that waits
            self._failure = failure
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._runner.setup()
        context = None
        if self._tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(CERTIFICATE)
        site = web.TCPSite(self._runner, self._host, self._port, ssl_context=context, backlog=1024)
        try:
            await site.start()
            self._port = self._runner.addresses[0][1]
            self._ready.set()
            await self._stopping.wait()
        finally:
            await self._runner.cleanup()

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[self._counted])
        routes: dict[str, Handler] = {
            "/sick/{name}": self._sick,
            "/held/{name}": self._held,
            "/bare/{name}": self._bare,
            "/versioned": self._versioned,
            "/alike/{name}": self._alike,
            "/late/{name}": self._late,
            "/status/{code}": self._status,
            "/flaky/{status}/{times}": self._flaky,
            "/bytes/{count}": self._bytes,
            "/chunked/{count}": self._chunked,
            "/encoded/{how}": self._encoded,
            "/bomb": self._bomb,
            "/loop": self._redirect_loop,
            "/redirects/{count}": self._redirects,
            "/redirect": self._redirect,
            "/tagged": self._tagged,
            "/robots.txt": self._robots_txt,
            "/stall": self._stall,
            "/drip": partial(self._stream, part=b"x", pause_seconds=_DRIP_SECONDS),
            "/endless": partial(self._stream, part=bytes(65_536), pause_seconds=0.0),
            "/meet/{count}": self._meet,
            "/echo{rest:.*}": self._echo,
            **dict.fromkeys(_FIXED, self._fixed),
            **dict.fromkeys(_RAW, self._raw),
        }
        app.add_routes([web.get(path, handler) for path, handler in routes.items()])
        if self._folder is not None:
            app.add_routes([web.static("/files", self._folder)])
        app.on_response_prepare.append(self._answered)
        return app

    async def _answered(self, _: web.Request, response: web.StreamResponse) -> None:
        self.answers[response.status] += 1

    @web.middleware
    async def _counted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.requests[request.path] += 1
        self.connections.add(request.transport.get_extra_info("peername") if request.transport else None)
        self.user_agents.add(request.headers.get("User-Agent", ""))
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        try:
            return await handler(request)
        finally:
            self.active -= 1

    async def _fixed(self, request: web.Request) -> web.StreamResponse:
        return web.Response(**_FIXED[request.path])

    async def _raw(self, request: web.Request) -> web.StreamResponse:
        payload, resets = _RAW[request.path]
        transport = request.transport
        if transport is not None:
            transport.write(payload)  # past aiohttp
            if resets:
                # Closing with a linger time of 0 sends RST instead of FIN.
                linger = struct.pack("ii", 1, 0)
                transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            transport.close()
        return web.Response()

    async def _status(self, request: web.Request) -> web.StreamResponse:
        return web.Response(status=int(request.match_info["code"]), text="no image")

    async def _late(self, request: web.Request) -> web.StreamResponse:
        if self._folder is None:
            raise web.HTTPNotFound
        await asyncio.sleep(_LATE_SECONDS)
        return web.FileResponse(self._folder / request.match_info["name"])

    async def _flaky(self, request: web.Request) -> web.StreamResponse:
        if self.requests[request.path] > int(request.match_info["times"]):
            return web.Response(body=_IMAGE)
        after = {"Retry-After": request.query["after"]} if "after" in request.query else {}
        return web.Response(status=int(request.match_info["status"]), text="no image", headers=after)

    async def _sick(self, request: web.Request) -> web.StreamResponse:
        if not self._is_healed or self._folder is None:
            return web.Response(status=500, text="not well")
        while self._answers_left < 1:
            await asyncio.sleep(_DRIP_SECONDS)
        self._answers_left -= 1
        return web.FileResponse(self._folder / request.match_info["name"])

    async def _bare(self, request: web.Request) -> web.StreamResponse:
        if self._folder is None:
            raise web.HTTPNotFound
        return web.Response(body=(self._folder / request.match_info["name"]).read_bytes())

    async def _versioned(self, request: web.Request) -> web.StreamResponse:
        etag, modified = request.query.get("etag", ""), request.query.get("modified", "")
        asked = request.headers.get("If-None-Match"), request.headers.get("If-Modified-Since")
        if any(asked) and asked == (etag or None, modified or None):
            later = {"ETag": request.query["later"]} if "later" in request.query else {}
            return web.Response(status=304, headers=later)
        headers = {"ETag": etag, "Last-Modified": modified}
        return web.Response(body=_IMAGE, headers={name: value for name, value in headers.items() if value})

    async def _alike(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("If-None-Match") == self.etag:
            return web.Response(status=304)
        bare = await self._bare(request)
        bare.headers["ETag"] = self.etag
        return bare

    async def _held(self, request: web.Request) -> web.StreamResponse:
        if self._folder is None:
            raise web.HTTPNotFound
        data = (self._folder / request.match_info["name"]).read_bytes()
        response = web.StreamResponse()
        response.content_length = len(data)
        await response.prepare(request)
        sent, next_second = 0, 0.0
        while self._answers_left < 1:
            if asyncio.get_running_loop().time() >= next_second:
                await response.write(data[sent : sent + 1])
                sent, next_second = sent + 1, asyncio.get_running_loop().time() + 1
            await asyncio.sleep(_DRIP_SECONDS)
        self._answers_left -= 1
        await response.write(data[sent:])
        return response

    async def _bytes(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=bytes(int(request.match_info["count"])))

    async def _chunked(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(bytes(int(request.match_info["count"])))
        return response

    async def _encoded(self, request: web.Request) -> web.StreamResponse:
        raw = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        how = request.match_info["how"]
        bodies = {
            "gzip": ("gzip", gzip.compress(_IMAGE)),
            "zlib": ("deflate", zlib.compress(_IMAGE)),
            "raw-deflate": ("deflate", raw.compress(_IMAGE) + raw.flush()),
            "broken": ("gzip", b"\x1f\x8b but not gzip"),
            "cut": ("gzip", gzip.compress(_IMAGE)[:-9]),
            "empty": ("gzip", b""),
        }
        declared, body = bodies.get(how, (how, _IMAGE))
        return web.Response(body=body, headers={"Content-Encoding": declared})

    async def _bomb(self, request: web.Request) -> web.StreamResponse:
        body = await asyncio.to_thread(gzip.compress, bytes(64 << 20), 1)
        return web.Response(body=body, headers={"Content-Encoding": "gzip"})

    async def _redirect_loop(self, request: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": request.path})

    async def _redirects(self, request: web.Request) -> web.StreamResponse:
        count = int(request.match_info["count"])
        location = f"/redirects/{count - 1}" if count > 1 else "/html"
        return web.Response(status=307, headers={"Location": location})

    async def _redirect(self, request: web.Request) -> web.StreamResponse:
        status = int(request.query.get("status", "302"))
        return web.Response(status=status, headers={"Location": request.query["to"]})

    async def _tagged(self, request: web.Request) -> web.StreamResponse:
        response = web.Response(status=int(request.query.get("status", "200")), body=_IMAGE)
        for value in request.query.getall("tag", []):
            response.headers.add("X-Robots-Tag", value)
        return response

    async def _robots_txt(self, request: web.Request) -> web.StreamResponse:
        if isinstance(self.robots_txt, int):
            return web.Response(status=self.robots_txt)
        # As many sites have it: the file itself is not to be indexed.
        return web.Response(text=self.robots_txt, headers={"X-Robots-Tag": "noindex"})

    async def _stall(self, request: web.Request) -> web.StreamResponse:
        await self._stopping.wait()
        return web.Response()

    async def _stream(self, request: web.Request, part: bytes, pause_seconds: float) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        # A client that has gone ends this with a ConnectionError, which aiohttp takes for an ordinary end.
        while not self._stopping.is_set():
            await response.write(part)
            await asyncio.sleep(pause_seconds)
        return response

    async def _meet(self, request: web.Request) -> web.StreamResponse:
        here: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._meeting.append(here)
        if len(self._meeting) >= int(request.match_info["count"]):
            for other in self._meeting:
                if not other.done():
                    other.set_result(None)
            self._meeting.clear()
        stopping = asyncio.ensure_future(self._stopping.wait())
        either: list[asyncio.Future[Any]] = [here, stopping]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        return web.Response(body=_IMAGE)

    async def _echo(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"path": request.raw_path, "headers": dict(request.headers)})
