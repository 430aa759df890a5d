"""A TCP server for tests that knows no protocol: it reads one request and sends fixed bytes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable
from typing import Self


class RawServer:
    """Answers every connection with the same parts, one `send` each, then closes it.

    Args:
        parts: what is sent; may be endless, a client that hangs up ends it.
    """

    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts = parts
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, name="raw-server", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # A shutdown wakes the thread out of accept, a close would not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    @property
    def port(self) -> int:
        """A free port of 127.0.0.1."""
        port: int = self._listener.getsockname()[1]
        return port

    def url(self, path: str) -> str:
        """URL of a path that begins with a slash."""
        return f"http://127.0.0.1:{self.port}{path}"

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        try:
            connection.recv(65_536)
            for part in self._parts:
                connection.sendall(part)
        except OSError:
            return  # the client has gone


class NeverConnected:
    """A listening port that must not be connected to; see `check`."""

    def __init__(self, host: str) -> None:
        self._listener = socket.create_server((host, 0))
        self._listener.setblocking(False)

    @property
    def port(self) -> int:
        """A free port of the host."""
        port: int = self._listener.getsockname()[1]
        return port

    def check(self) -> None:
        """Fail if anybody has connected; close the port."""
        with self._listener:
            try:
                connection, peer = self._listener.accept()
            except BlockingIOError:
                return
            connection.close()
            raise AssertionError(f"{peer} has connected to a forbidden address")
