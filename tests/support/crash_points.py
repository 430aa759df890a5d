"""Crash points for tests: dying at the Nth passage, hanging there, noting every passage in a file."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

from ops.chaos.crash_points import CrashPoint


class DiesAt:
    """SIGKILL to this process when a point is reached for the Nth time."""

    def __init__(self, point: CrashPoint, passage: int = 1) -> None:
        self._point = point
        self._left = passage
        self._lock = threading.Lock()

    def reach(self, point: CrashPoint) -> None:
        if point is not self._point:
            return
        with self._lock:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


class HangsAt:
    """The first to reach a point stays there, after a file has been made that tells so; no other one does."""

    def __init__(self, point: CrashPoint, file: Path) -> None:
        self._point = point
        self._file = file

    def reach(self, point: CrashPoint) -> None:
        if point is not self._point:
            return
        with suppress(FileExistsError):
            self._file.touch(exist_ok=False)
            threading.Event().wait()


class FreezesAt:
    """SIGSTOP to this process when a point is reached while a file is there, which goes with it."""

    def __init__(self, point: CrashPoint, file: Path) -> None:
        self._point = point
        self._file = file

    def reach(self, point: CrashPoint) -> None:
        if point is not self._point:
            return
        with suppress(FileNotFoundError):
            self._file.unlink()
            os.kill(os.getpid(), signal.SIGSTOP)


class Recorder:
    """Appends the name of each point that is reached to a file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def reach(self, point: CrashPoint) -> None:
        with self._file.open("a") as file:
            file.write(f"{point.value}\n")

    def reached(self) -> list[str]:
        return self._file.read_text().split() if self._file.exists() else []
