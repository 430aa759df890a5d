"""The worker's end of the socket to a decode child. Knows bytes and time limits, not what they mean."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

_POLL_SECONDS = 0.5


class TooSlow(Exception):  # noqa: N818 - no error of ours: the caller makes one of it
    """The time limit is over."""


class HungUp(Exception):  # noqa: N818 - no error of ours: the caller makes one of it
    """The child has closed the socket: it is dead or dying."""


class Line:
    """A socket with one time limit for all reads and writes.

    Time is counted in short polls, each of which counts for at most what it was meant to last: a worker that
    was frozen for a minute must not blame the child for it.
    """

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._poll = select.poll()
        self._seconds_left = 0.0

    def allow(self, seconds: float) -> None:
        """Set the time limit for all reads and writes from now on."""
        self._seconds_left = seconds

    def send(self, data: bytes) -> None:
        """Send all of it; raises `TooSlow` or `HungUp`."""
        view = memoryview(data)
        while view:
            self._wait(select.POLLOUT)
            with _hanging_up():
                view = view[self._socket.send(view) :]

    def receive_into(self, view: memoryview) -> None:
        """Fill it; raises `TooSlow` or `HungUp`."""
        while view:
            self._wait(select.POLLIN)
            with _hanging_up():
                count = self._socket.recv_into(view)
            if not count:
                raise HungUp
            view = view[count:]

    def receive(self, count: int) -> bytes:
        """So many bytes; raises `TooSlow` or `HungUp`."""
        buffer = bytearray(count)
        self.receive_into(memoryview(buffer))
        return bytes(buffer)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _wait(self, event: int) -> None:
        self._poll.register(self._socket, event)
        is_ready = False
        while not is_ready:
            if self._seconds_left <= 0:
                raise TooSlow
            poll_seconds = min(_POLL_SECONDS, self._seconds_left)
            started = time.monotonic()
            is_ready = bool(self._poll.poll(poll_seconds * 1000))
            self._seconds_left -= min(time.monotonic() - started, poll_seconds)


@contextmanager
def _hanging_up() -> Iterator[None]:
    try:
        yield
    except (BrokenPipeError, ConnectionResetError):
        raise HungUp from None
