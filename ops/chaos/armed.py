"""Crash points that are armed while the worker runs: by a file in a folder of its slot.

The harness puts `NUMBER-POINT-PASSAGE-STRIKE` there. The worker that reaches the point for that many times
since then renames the file and kills itself as a power cut would, or freezes as a machine that sleeps. One is
armed at a time.
"""

from __future__ import annotations

import os
import signal
import threading
from enum import StrEnum
from pathlib import Path
from typing import Any

from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet.outputs.s3 import S3Output
from ops.chaos.crash_points import CrashPoint

ARMED = "armed"  # the folder, below that of a slot
STRUCK = ".struck"
# The sink has done all it does before a part becomes visible, in a place that was free, or in another one's.
IN_PUBLISH, IN_REPLACE = "in_publish", "in_replace"


class Strike(StrEnum):
    """What happens to the worker."""

    DEATH = "death"
    FREEZE = "freeze"


_SIGNALS = {Strike.DEATH: signal.SIGKILL, Strike.FREEZE: signal.SIGSTOP}


class ArmedCrashPoints:
    """For `ops.chaos.crash_points`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._armed: str | None = None
        self._passages = 0
        self._lock = threading.Lock()

    def reach(self, point: CrashPoint) -> None:
        """Die or freeze here if that is what the armed file says."""
        self.reach_named(point.value)

    def reach_named(self, point: str) -> None:
        """Likewise at a step that the product has no name for."""
        with self._lock:
            armed = armed_in(self._folder)
            if armed is None or armed.split("-")[1] != point:
                return
            if armed != self._armed:
                self._armed, self._passages = armed, 0
            self._passages += 1
            if self._passages < int(armed.split("-")[2]):
                return
            (self._folder / armed).rename(self._folder / f"{armed}{STRUCK}")
            os.kill(os.getpid(), _SIGNALS[Strike(armed.split("-")[3])])

    def stand_before_publishing(self) -> None:
        """Have the outputs of this process pass these two before each part that they make visible."""
        for kind in (FolderOutput, S3Output):
            for name, point in (("publish", IN_PUBLISH), ("replace_if", IN_REPLACE)):
                setattr(kind, name, self._passing(getattr(kind, name), point))

    def _passing(self, method: Any, point: str) -> Any:
        def passing(output: Any, scratch: Path, name: str, *args: Any, **options: Any) -> bool:
            if not name.startswith(objects.LAYOUT.part_prefix):
                return bool(method(output, scratch, name, *args, **options))
            confirm = options.get("confirm")
            if confirm is None:
                self.reach_named(point)
                return bool(method(output, scratch, name, *args, **options))

            def confirm_and_stand() -> None:
                confirm()
                self.reach_named(point)

            return bool(method(output, scratch, name, *args, **{**options, "confirm": confirm_and_stand}))

        return passing


def arm(folder: Path, number: int, point: str, passage: int, what: Strike) -> None:
    """Let the worker of this folder die or freeze at a crash point."""
    (folder / f"{number}-{point}-{passage}-{what}").touch()


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


def struck_in(folder: Path, what: Strike) -> set[int]:
    """Numbers of the faults that have struck."""
    return {int(path.name.split("-")[0]) for path in folder.glob(f"*-{what}{STRUCK}")}
