"""Bytes to a gateway over a socket, as no well-behaved client sends them."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass

_STATUS = re.compile(rb"(?:HTTP/\d\.\d (\d{3}) [^\r\n]*)")
_BODY = re.compile(rb"\{.*\}", re.DOTALL)
_SECONDS = 30.0


@dataclass(frozen=True)
class RawAnswer:
    """What came back until the other side closed, or an answer was there."""

    data: bytes

    @property
    def statuses(self) -> list[int]:
        return [int(status) for status in _STATUS.findall(self.data)]

    @property
    def code(self) -> str | None:
        """Of the last error, whose object must have its four keys and no others."""
        body = json.loads(self.data[self.data.rindex(b'{"error":') :])
        assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
        code: str | None = body["error"]["code"]
        return code


def send_raw(address: str, pieces: bytes | Iterable[bytes], *, ends_after: int = 1) -> RawAnswer:
    """Send bytes, and read until the other side closes or `ends_after` answers have a body.

    A side that resets the connection while bytes are sent has answered before.
    """
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=_SECONDS) as connection:
        data = b""
        try:
            for piece in [pieces] if isinstance(pieces, bytes) else pieces:
                connection.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass
        try:
            while len(re.findall(rb"\}\}?$|\}(?=HTTP/)", data)) < ends_after:
                got = connection.recv(65536)
                if not got:
                    break
                data += got
        except ConnectionResetError:
            pass
    return RawAnswer(data)
