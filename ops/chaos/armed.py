"""Crash points that are armed while the worker runs: by a file in a folder of its slot.

The harness puts `NUMBER-POINT-PASSAGE` there. The worker that reaches the point for that many times since
then renames the file and kills itself as a power cut would. One is armed at a time.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

from clipfleet.crash_points import CrashPoint

ARMED = "armed"  # the folder, below that of a slot
STRUCK = ".struck"


class ArmedCrashPoints:
    """See `clipfleet.crash_points.CrashPoints`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._armed: str | None = None
        self._passages = 0
        self._lock = threading.Lock()

    def reach(self, point: CrashPoint) -> None:
        """Die here if that is what the armed file says."""
        with self._lock:
            armed = armed_in(self._folder)
            if armed is None or armed.split("-")[1] != point.value:
                return
            if armed != self._armed:
                self._armed, self._passages = armed, 0
            self._passages += 1
            if self._passages < int(armed.split("-")[2]):
                return
            (self._folder / armed).rename(self._folder / f"{armed}{STRUCK}")
            os.kill(os.getpid(), signal.SIGKILL)


def arm(folder: Path, number: int, point: str, passage: int) -> None:
    """Let the worker of this folder die at a crash point."""
    (folder / f"{number}-{point}-{passage}").touch()


def disarm(folder: Path) -> bool:
    """Take back what has not struck; False if there was nothing."""
    armed = armed_in(folder)
    if armed is None:
        return False
    (folder / armed).unlink(missing_ok=True)
    return True


def armed_in(folder: Path) -> str | None:
    """The name of the armed file, if there is one."""
    return next((name for name in os.listdir(folder) if not name.endswith(STRUCK)), None)  # noqa: PTH208


def struck_in(folder: Path) -> set[int]:
    """Numbers of the faults that have struck."""
    return {int(path.name.split("-")[0]) for path in folder.glob(f"*{STRUCK}")}
