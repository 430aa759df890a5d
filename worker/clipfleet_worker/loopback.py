"""Free ports of this machine's loopback address."""

from __future__ import annotations

import random
import socket

from clipfleet.errors import WorldError

HOST = "127.0.0.1"
# Below Linux' range for outgoing connections (32768 on). Inside it, a client that keeps dialling the port of
# a server that is down can be given that very port, talks to itself, and keeps the server from coming back.
_PORTS = range(15_000, 32_000)


def port_is_free(port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as listener:
        # As servers do it: what is left of old connections is no obstacle.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port that is free now.

    Raises:
        WorldError: none was found.
    """
    for _ in range(100):
        port = random.choice(_PORTS)
        if port_is_free(port):
            return port
    raise WorldError(f"no free port found between {_PORTS.start} and {_PORTS.stop} on {HOST}")
