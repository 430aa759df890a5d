"""A web server that does to its clients what servers should not: one way for each path, on loopback.

    python -m tests.support.hostile_site FILE

serves `FILE` as `/good/...` until its standard input ends, and prints its port first. `WAYS` has the others.
Every loopback address is a host of its own.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import socket
import struct
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Self

Way = Callable[[asyncio.StreamWriter], Awaitable[None]]

_DRIP_SECONDS = 0.05
_OK = b"HTTP/1.1 200 OK\r\n"
_CHUNKED = _OK + b"Transfer-Encoding: chunked\r\n\r\n"
_PIECE = bytes(65_536)


class HostileSite:
    """Runs in a thread of its own from `__enter__` to `__exit__`.

    Args:
        good: what `/good/...` answers, with connections that are kept.
    """

    def __init__(self, good: bytes) -> None:
        self.requests: Counter[str] = Counter()  # by the first part of the path
        self.good_times: list[float] = []  # of each good answer, time.monotonic
        self.connections = 0
        self.port = 0
        self._good = _OK + b"Content-Length: %d\r\n\r\n" % len(good) + good
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready = threading.Event()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="hostile-site", daemon=True)

    def __enter__(self) -> Self:
        _bomb(200)  # takes a second
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def url(self, path: str, host: str = "127.0.0.1", scheme: str = "http") -> str:
        """URL of a path that begins with a slash."""
        return f"{scheme}://{host}:{self.port}{path}"

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connected, "0.0.0.0", 0, backlog=4096)  # noqa: S104
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopping.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while await self._answered(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass  # the client has gone, speaks TLS, or the site stops
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _answered(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection is kept."""
        head = await reader.readuntil(b"\r\n\r\n")
        way = head.split(b" ", 2)[1].decode().split("/")[1].split("?")[0]
        self.requests[way] += 1
        if way == "good":
            writer.write(self._good)
            self.good_times.append(time.monotonic())
            return True
        await WAYS[way](writer)
        return False


async def _say(writer: asyncio.StreamWriter, *parts: bytes) -> None:
    for part in parts:
        writer.write(part)
        await writer.drain()


async def _flood(writer: asyncio.StreamWriter, part: bytes) -> None:
    while True:
        await _say(writer, part)


async def _drip(writer: asyncio.StreamWriter, part: bytes) -> None:
    while True:
        await _say(writer, part)
        await asyncio.sleep(_DRIP_SECONDS)


async def _stall(writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


def _reset(writer: asyncio.StreamWriter) -> None:
    # The kernel sends a reset instead of an orderly end.
    opened: socket.socket = writer.get_extra_info("socket")
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _then(*parts: bytes, last: Callable[[asyncio.StreamWriter], Awaitable[None]] | None = None) -> Way:
    """Say these parts, then do the last thing; without one the connection ends."""

    async def way(writer: asyncio.StreamWriter) -> None:
        await _say(writer, *parts)
        if last is not None:
            await last(writer)
        elif writer.can_write_eof():
            writer.write_eof()
            await asyncio.sleep(1)  # what is buffered has to leave before the connection is dropped

    return way


def _flooding(*parts: bytes, flood: bytes) -> Way:
    return _then(*parts, last=lambda writer: _flood(writer, flood))


def _dripping(*parts: bytes, drop: bytes = b"x") -> Way:
    return _then(*parts, last=lambda writer: _drip(writer, drop))


def _resetting(*parts: bytes) -> Way:
    async def way(writer: asyncio.StreamWriter) -> None:
        await _say(writer, *parts)
        await asyncio.sleep(_DRIP_SECONDS)  # let the parts arrive: a reset overtakes them
        _reset(writer)

    return way


def _long_header(lines: int) -> Way:
    """Of 10 kB each."""
    return _then(
        _OK, *(b"x-%d: %s\r\n" % (n, b"y" * 10_000) for n in range(lines)), b"Content-Length: 0\r\n\r\n"
    )


@functools.cache
def _bomb(mebibytes: int) -> bytes:
    packer = zlib.compressobj(9, wbits=16 + zlib.MAX_WBITS)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(mebibytes)) + packer.flush()


async def _gzip_bomb(writer: asyncio.StreamWriter) -> None:
    bomb = _bomb(200)
    head = _OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    await _then(head, bomb)(writer)


async def _header_lines(writer: asyncio.StreamWriter) -> None:
    await _say(writer, _OK)
    for number in itertools.count():
        await _say(writer, b"x-%d: y\r\n" % number)


WAYS: dict[str, Way] = {
    # silence and slowness
    "stall": _stall,
    "drip-header": _dripping(_OK + b"X-Slow: "),
    "drip-header-lines": _dripping(_OK, drop=b"x: y\r\n"),
    "drip-body": _dripping(_OK + b"Content-Length: 100000\r\n\r\n"),
    "drip-chunks": _dripping(_CHUNKED, drop=b"1\r\nx\r\n"),
    "silent-body": _then(_OK + b"Content-Length: 100000\r\n\r\nabc", last=_stall),
    "drip-continue": _dripping(drop=b"HTTP/1.1 100 Continue\r\n\r\n"),
    # floods
    "endless": _flooding(_OK + b"\r\n", flood=_PIECE),
    "endless-chunks": _flooding(_CHUNKED, flood=b"10000\r\n" + _PIECE + b"\r\n"),
    "tiny-chunks": _flooding(_CHUNKED, flood=b"1\r\nx\r\n" * 10_000),
    "huge-length": _flooding(_OK + b"Content-Length: 100000000000\r\n\r\n", flood=_PIECE),
    "gzip-bomb": _gzip_bomb,
    "header-half-megabyte": _long_header(50),
    "header-megabyte": _long_header(105),
    "header-lines": _header_lines,
    "header-line": _flooding(_OK + b"X-Big: ", flood=b"y" * 65_536),
    "status-line": _flooding(b"HTTP/1.1 200 ", flood=b"O" * 65_536),
    "continue-flood": _flooding(flood=b"HTTP/1.1 100 Continue\r\n\r\n" * 2_000),
    "chunk-extension": _flooding(_CHUNKED + b"1;", flood=b"x" * 65_536),
    "chunk-extensions": _flooding(_CHUNKED, flood=(b"1;" + b"x" * 10_000 + b"\r\nx\r\n") * 6),
    "trailers": _flooding(_CHUNKED + b"1\r\nx\r\n0\r\n", flood=b"x: y\r\n" * 10_000),
    "trailer": _flooding(_CHUNKED + b"1\r\nx\r\n0\r\nx: ", flood=b"y" * 65_536),
    "answers": _flooding(flood=(_OK + b"Content-Length: 0\r\n\r\n") * 2_000),
    # lies
    "length-too-long": _then(_OK + b"Content-Length: 1000\r\n\r\nonly the beginning"),
    "length-too-short": _then(_OK + b"Content-Length: 3\r\n\r\nabc and more"),
    "length-negative": _then(_OK + b"Content-Length: -5\r\n\r\nabc"),
    "length-overflow": _then(_OK + b"Content-Length: 99999999999999999999999\r\n\r\nabc"),
    "length-words": _then(_OK + b"Content-Length: three\r\n\r\nabc"),
    "two-lengths": _then(_OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
    "length-and-chunks": _then(
        _OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n"
    ),
    "chunk-size-overflow": _then(_CHUNKED + b"fffffffffffffffffff\r\nabc"),
    "chunk-size-negative": _then(_CHUNKED + b"-1\r\nabc"),
    "chunks-cut": _then(_CHUNKED + b"5\r\nab"),
    # other protocols, broken ones, broken connections
    "http-0.9": _then(b"<html>no header at all</html>"),
    "http-2": _then(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64"),
    "smtp": _then(b"220 smtp.test ready\r\n"),
    "switching": _then(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nabc"),
    "nul-header": _then(_OK + b"X: a\0b\r\nContent-Length: 0\r\n\r\n"),
    "close": _then(),
    "close-in-header": _then(_OK + b"Content-Le"),
    "reset": _resetting(),
    "reset-in-header": _resetting(_OK + b"Content-Le"),
    "reset-in-body": _resetting(_OK + b"Content-Length: 1000\r\n\r\nabc"),
    "reset-in-open-body": _resetting(_OK + b"\r\nabc"),
    # redirects
    "redirect-loop": _then(b"HTTP/1.1 302 Found\r\nLocation: /redirect-loop\r\nContent-Length: 0\r\n\r\n"),
    "redirect-body": _flooding(b"HTTP/1.1 302 Found\r\nLocation: /redirect-body\r\n\r\n", flood=_PIECE),
    "redirect-long": _then(
        b"HTTP/1.1 302 Found\r\nLocation: /redirect-long/" + b"x" * 15_000 + b"\r\nContent-Length: 0\r\n\r\n"
    ),
    "not-found-body": _flooding(b"HTTP/1.1 404 Not Found\r\n\r\n", flood=_PIECE),
}


def main() -> None:
    with HostileSite(Path(sys.argv[1]).read_bytes()) as site:
        print(site.port, flush=True)
        for line in sys.stdin:  # each line asks for the good answers since the one before
            assert line == "good\n", line
            times, site.good_times = site.good_times, []
            print(len(times), times[-1] - times[0] if times else 0.0, flush=True)


if __name__ == "__main__":
    main()
