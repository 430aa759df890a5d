"""Files of mode 0600, and locks that last as long as the process that holds them."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipfleet.errors import WorldError
from clipfleet_worker.machine.child import POLL_SECONDS


def write_private(path: Path, text: str) -> None:
    """Replace a file atomically; only its owner can read it."""
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(os.fsencode(text))
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def is_private(status: os.stat_result) -> bool:
    """Whether a file or folder is this user's, and nobody else can write to it."""
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def read_private(path: Path) -> bytes:
    """Read a file.

    Raises:
        PermissionError: another user can have written it.
    """
    with path.open("rb") as file:
        if not is_private(os.fstat(file.fileno())):
            raise PermissionError(errno.EACCES, "another user can have written it", str(path))
        return file.read()


def try_lock(path: Path) -> int | None:
    """Lock a file, which is created if need be.

    Returns: A descriptor; the lock lasts until it and every inherited copy is closed. None: another process
        holds it.
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


@contextmanager
def locked(path: Path, wait_seconds: float) -> Iterator[int]:
    """Hold a lock, and yield its descriptor; a child that inherits it keeps the lock.

    Raises:
        WorldError: another process still holds it after `wait_seconds`.
    """
    deadline = time.monotonic() + wait_seconds
    while (lock := try_lock(path)) is None:
        if time.monotonic() >= deadline:
            raise WorldError(f"{path.parent}: a server already runs on it (pid {holder(path)})")
        time.sleep(POLL_SECONDS)
    try:
        yield lock
    finally:
        os.close(lock)


def note_holder(descriptor: int, pid: int | None) -> None:
    """Write the pid of the holder into a locked file."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{pid}\n".encode(), 0)


def holder(path: Path) -> str:
    """Pid of the process that holds a lock file, as text; `unknown` if it is not written yet."""
    try:
        return path.read_text().strip() or "unknown"
    except OSError:
        return "unknown"
