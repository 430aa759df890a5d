"""Sockets that count received bytes and break the connection to a server that sends too many useless ones.

A parser silently drops much that costs time or memory: interim responses, chunk extensions, chunks of a byte,
responses to nothing on an idle connection. So bytes on the wire are counted where they arrive, also below
TLS. asyncio handles an error of `recv` as the end of the connection.
"""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING and sys.version_info >= (3, 12):
    from collections.abc import Buffer
elif TYPE_CHECKING:
    from typing_extensions import Buffer

# At a time, so that a flood does not block the event loop for long.
_RECEIVED_BYTES = 64 << 10
# A head, of 64 KiB at most, and the beginning of a body, of which aiohttp receives up to 192 KiB before they
# are read, and the TLS of asyncio 320 KiB more.
_FREE_BYTES = 320 << 10
_FREE_BYTES_OF_TLS = 384 << 10
_OF_USE_FACTOR = 2  # so much may come in for each byte of a body


class FloodError(OSError):
    """The other side sent too many useless bytes."""

    def __init__(self) -> None:
        super().__init__(errno.EMSGSIZE, "sent too many bytes that belong to no body")


class MeteredSocket(socket.socket):
    """Raises `FloodError` when more than the allowed bytes arrive, counted from each request on."""

    def __init__(
        self, family: int, kind: int, protocol: int, on_close: Callable[[MeteredSocket], None]
    ) -> None:
        super().__init__(family, kind, protocol)
        self.number = self.fileno()
        self._on_close = on_close
        self._bytes_left = _FREE_BYTES
        self.is_flooded = False
        self.is_broken = False  # it ended with an error

    def allow(self, body_bytes: int) -> None:
        """Allow more: so many bytes of a body have arrived."""
        self._bytes_left += _OF_USE_FACTOR * body_bytes

    def start_anew(self) -> None:
        """Reset the count: a request is sent, or a response is complete."""
        self._bytes_left = _FREE_BYTES

    def send(self, data: Buffer, flags: int = 0, /) -> int:
        self.start_anew()
        return super().send(data, flags)

    def sendmsg(self, *arguments: Any) -> int:
        self.start_anew()
        return super().sendmsg(*arguments)

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """See socket.socket; asyncio reads plain connections by it."""
        data: bytes = self._metered(super().recv, min(size, _RECEIVED_BYTES), flags)
        self._count(len(data), 0)
        return data

    def recv_into(self, buffer: Buffer, size: int = 0, flags: int = 0) -> int:
        """See socket.socket; asyncio reads TLS by it."""
        size = min(size or memoryview(buffer).nbytes, _RECEIVED_BYTES)
        count: int = self._metered(super().recv_into, buffer, size, flags)
        self._count(count, _FREE_BYTES_OF_TLS)
        return count

    def close(self) -> None:
        super().close()
        self._on_close(self)

    def _metered(self, receive: Callable[..., Any], *arguments: object) -> Any:
        try:
            return receive(*arguments)
        except (BlockingIOError, InterruptedError):
            raise
        except OSError:
            self.is_broken = True
            raise

    def _count(self, received: int, free_bytes: int) -> None:
        self._bytes_left -= received
        if self._bytes_left + free_bytes < 0:
            self.is_flooded = self.is_broken = True
            raise FloodError


class MeteredSockets:
    """The open sockets of one fetcher."""

    def __init__(self) -> None:
        self._open: dict[int, MeteredSocket] = {}

    def __len__(self) -> int:
        return len(self._open)

    def make(self, family: int, kind: int, protocol: int) -> MeteredSocket:
        """Make a socket; fits `AddressGuard.open_socket`."""
        made = MeteredSocket(family, kind, protocol, self._closed)
        self._open[made.number] = made
        return made

    def behind(self, response: aiohttp.ClientResponse) -> MeteredSocket | None:
        """The socket of a response; None if the whole response has arrived."""
        transport = response.connection.transport if response.connection else None
        opened = transport.get_extra_info("socket") if transport else None
        return self._open.get(opened.fileno()) if opened else None

    def _closed(self, closed: MeteredSocket) -> None:
        if self._open.get(closed.number) is closed:  # at a second close the number may be another socket's
            del self._open[closed.number]
