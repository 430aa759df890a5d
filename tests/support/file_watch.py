"""Whether any program opens or reads files of a folder: inotify, so that libraries are seen, too."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

_IN_ACCESS, _IN_OPEN = 0x1, 0x20
_NONBLOCK = os.O_NONBLOCK
_EVENT_BYTES = 1 << 16


class FileWatch:
    """Counts events from now on."""

    def __init__(self, folder: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(_NONBLOCK)
        watch = libc.inotify_add_watch(self._fd, os.fsencode(folder), _IN_ACCESS | _IN_OPEN)
        if min(self._fd, watch) < 0:
            raise OSError(ctypes.get_errno(), "inotify")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def was_read(self) -> bool:
        """Whether a file was opened or read since the last call."""
        found = False
        with suppress(BlockingIOError):
            while os.read(self._fd, _EVENT_BYTES):
                found = True
        return found
