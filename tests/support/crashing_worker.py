"""A worker with crash points, otherwise the same as `clipfleet-worker run`.

`python -m tests.support.crashing_worker POINT N` dies at the Nth passage of a point, `POINT hang FILE` stays
there and makes the file (`POINT hang FILE SECONDS`: where a write may take so long), `POINT freeze FILE` is
stopped there if it finds the file, `record FILE` notes all passages, `load hang FILE` stays in the loading of
a model, `standstill SECONDS` ends when none of its threads runs for so long.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

from clipfleet.crash_points import NO_CRASH_POINTS, CrashPoint, CrashPoints
from clipfleet.settings import checked
from clipfleet_worker import leases, pipeline
from clipfleet_worker.drain import end_process
from clipfleet_worker.lifecycle import Worker
from clipfleet_worker.logs import log_to_stderr
from clipfleet_worker.model import load_model
from clipfleet_worker.settings import WorkerSettings
from clipfleet_worker.watchdog import Watchdog
from tests.support.crash_points import DiesAt, FreezesAt, HangsAt, Recorder


def crash_points_of(arguments: list[str]) -> CrashPoints:
    match arguments:
        case ["record", file]:
            return Recorder(Path(file))
        case ["load", "hang", file]:
            return NO_CRASH_POINTS  # see `loader_of`
        case ["standstill", _]:
            return NO_CRASH_POINTS  # see `watchdog_of`
        case [point, "hang", file, limit_seconds]:
            pipeline._PREPARE_WRITE_LIMIT_SECONDS = float(limit_seconds)
            leases._HANG_SECONDS = 5 * float(limit_seconds)
            return HangsAt(CrashPoint(point), Path(file))
        case [point, "hang", file]:
            return HangsAt(CrashPoint(point), Path(file))
        case [point, "freeze", file]:
            return FreezesAt(CrashPoint(point), Path(file))
        case [point, passage]:
            return DiesAt(CrashPoint(point), int(passage))
    raise SystemExit(__doc__)


def loader_of(arguments: list[str]) -> Any:
    match arguments:
        case ["load", "hang", file]:
            return hangs(Path(file))
    return load_model


def watchdog_of(arguments: list[str]) -> Watchdog | None:
    match arguments:
        case ["standstill", seconds]:
            return Watchdog(look_seconds=0.1, standstill_seconds=float(seconds))
    return None


def hangs(file: Path) -> Any:
    def load(*_: object) -> None:
        file.touch()
        threading.Event().wait()

    return load


if __name__ == "__main__":
    log_to_stderr()
    worker = Worker(
        checked(WorkerSettings),
        preload=True,
        crash_points=crash_points_of(sys.argv[1:]),
        load_model=loader_of(sys.argv[1:]),
        watchdog=watchdog_of(sys.argv[1:]),
    )
    end_process(worker.run())
