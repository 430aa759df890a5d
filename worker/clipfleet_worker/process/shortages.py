"""Recognises errors that mean too few file descriptors, threads or bytes of memory in this process.

A `MemoryError` does not count: one image may be the reason.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from clipfleet_worker.failures import WorkerShortageError

# Messages of CPython's RuntimeError, and of Arrow's generic exception.
_NO_THREAD = ("can't start new thread", "Failed to launch worker thread")
_NO_MEMORY = (errno.ENOMEM, errno.ENOBUFS)
# Messages of the dynamic linker, which become an ImportError.
_NOT_MAPPED = ("failed to map segment from shared object", f": {os.strerror(errno.ENOMEM)}")
_NOT_OPENED = f": {os.strerror(errno.EMFILE)}"

_LITTLE_MEMORY = "this worker has too little memory: raise its limit (ulimit -v), or use a larger machine"


def shortage_behind(error: BaseException) -> WorkerShortageError | None:
    """The shortage that caused an exception; None if there was none.

    Follows causes and contexts, since libraries wrap the errors of the operating system.
    """
    for one in _chain(error):
        if isinstance(one, WorkerShortageError):
            return one
        what = _missing(one)
        if what is not None:
            return WorkerShortageError(what)
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _missing(error: BaseException) -> str | None:
    if isinstance(error, RuntimeError | pa.ArrowException) and any(
        words in str(error) for words in _NO_THREAD
    ):
        return (
            "this worker cannot start another thread: raise its limits of processes and memory "
            "(ulimit -u, ulimit -v)"
        )
    if isinstance(error, socket.gaierror):  # its numbers are not errno's
        lacks_descriptors = error.errno == socket.EAI_AGAIN and not _can_open_files()
        return _few_descriptors() if lacks_descriptors else None
    if isinstance(error, ImportError):
        if str(error).endswith(_NOT_OPENED):
            return _few_descriptors()
        return _LITTLE_MEMORY if str(error).endswith(_NOT_MAPPED) else None
    if not isinstance(error, OSError):
        return None
    if error.errno == errno.EMFILE:
        return _few_descriptors()
    if error.errno == errno.ENFILE:
        return "this machine has no file descriptor left: raise fs.file-max"
    return _LITTLE_MEMORY if error.errno in _NO_MEMORY else None


def _few_descriptors() -> str:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return f"this worker has too few file descriptors (ulimit -n {limit}): raise it"


def _can_open_files() -> bool:
    """Whether a file can be opened: a resolver without a socket reports a silent name server."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


class LenientThreadPool(ThreadPoolExecutor):
    """A thread pool in which work waits if the machine refuses another thread.

    The executor of the standard library queues the work, but raises. This one raises only while it has no
    thread.
    """

    def _adjust_thread_count(self) -> None:
        try:
            super()._adjust_thread_count()
        except RuntimeError as error:
            if not self._threads or shortage_behind(error) is None:
                raise
