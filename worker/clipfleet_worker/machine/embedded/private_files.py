"""Files that only their owner reads (mode 0600); locks that live as long as the process that holds them."""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipfleet.errors import WorldError
from clipfleet_worker.machine.child import POLL_SECONDS


def write_private(path: Path, text: str) -> None:
    """Replace a file, in one step, by one that only its owner can read."""
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
    """Lock a file that is made if need be.

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


@contextmanager
def locked(path: Path, wait_seconds: float) -> Iterator[int]:
    """Hold a lock file's lock, and yield its descriptor; a child that inherits it holds on to it.

    Raises:
        WorldError: another process still held it after `wait_seconds`.
    """
    deadline = time.monotonic() + wait_seconds
    while (lock := try_lock(path)) is None:
        if time.monotonic() >= deadline:
            raise WorldError(f"a server runs on {path.parent} already (pid {holder(path)})")
        time.sleep(POLL_SECONDS)
    try:
        yield lock
    finally:
        os.close(lock)


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
