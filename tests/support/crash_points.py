"""What a test has happen at a crash point: death, a hang, a freeze, a line in a file."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

from ops.chaos.crash_points import CrashPoint, Reach


def dies_at(point: CrashPoint, passage: int) -> Reach:
    """SIGKILL to this process when the point is reached for the Nth time."""
    passages = itertools.count(1)

    def reach(reached: CrashPoint) -> None:
        if reached is point and next(passages) == passage:
            os.kill(os.getpid(), signal.SIGKILL)

    return reach


def hangs_at(point: CrashPoint, file: Path) -> Reach:
    """The first thread to reach the point creates the file and stays there; later ones pass."""

    def reach(reached: CrashPoint) -> None:
        if reached is point:
            with suppress(FileExistsError):
                hang(file)

    return reach


def freezes_at(point: CrashPoint, file: Path) -> Reach:
    """SIGSTOP to this process when the point is reached while the file exists; it is removed first."""

    def reach(reached: CrashPoint) -> None:
        if reached is point:
            with suppress(FileNotFoundError):
                file.unlink()
                os.kill(os.getpid(), signal.SIGSTOP)

    return reach


def records_in(file: Path) -> Reach:
    """Append the name of each point that is reached to the file."""

    def reach(reached: CrashPoint) -> None:
        with file.open("a") as lines:
            lines.write(f"{reached.value}\n")

    return reach


def hang(file: Path) -> None:
    """Create a file that must not exist yet, and block for ever."""
    file.touch(exist_ok=False)
    threading.Event().wait()
