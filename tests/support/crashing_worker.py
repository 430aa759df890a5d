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

from clipfleet.settings import checked
from clipfleet_worker.assembly.worker import Worker
from clipfleet_worker.chunk import held_lease, pipeline
from clipfleet_worker.models.loaded import load_model
from clipfleet_worker.process.drain import end_process
from clipfleet_worker.process.logs import log_to_stderr
from clipfleet_worker.process.watchdog import Watchdog
from clipfleet_worker.settings import WorkerSettings
from ops.chaos.crash_points import CrashPoint, Reach, stand_in_worker
from tests.support.crash_points import DiesAt, FreezesAt, HangsAt, Recorder


def reach_of(arguments: list[str]) -> Reach | None:
    match arguments:
        case ["record", file]:
            return Recorder(Path(file)).reach
        case ["load", "hang", file]:
            return None  # see `loader_of`
        case ["standstill", _]:
            return None  # see `watchdog_of`
        case [point, "hang", file, limit_seconds]:
            pipeline._PREPARE_WRITE_LIMIT_SECONDS = float(limit_seconds)
            held_lease._HANG_SECONDS = 5 * float(limit_seconds)
            return HangsAt(CrashPoint(point), Path(file)).reach
        case [point, "hang", file]:
            return HangsAt(CrashPoint(point), Path(file)).reach
        case [point, "freeze", file]:
            return FreezesAt(CrashPoint(point), Path(file)).reach
        case [point, passage]:
            return DiesAt(CrashPoint(point), int(passage)).reach
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
    if reach := reach_of(sys.argv[1:]):
        stand_in_worker(reach)
    worker = Worker(
        checked(WorkerSettings),
        preload=True,
        load_model=loader_of(sys.argv[1:]),
        watchdog=watchdog_of(sys.argv[1:]),
    )
    end_process(worker.run())
