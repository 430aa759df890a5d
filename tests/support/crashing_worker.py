"""A worker with crash points: `python -m tests.support.crashing_worker POINT [N]` dies at the Nth passage,
`... record FILE` notes the passages. Otherwise the same as `clipfleet-worker run`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from clipfleet.crash_points import CrashPoint, CrashPoints
from clipfleet.settings import checked
from clipfleet_worker.lifecycle import Worker
from clipfleet_worker.logs import log_to_stderr
from clipfleet_worker.settings import WorkerSettings
from tests.support.crash_points import DiesAt, Recorder


def crash_points_of(arguments: list[str]) -> CrashPoints:
    word, *rest = arguments
    if word == "record":
        return Recorder(Path(rest[0]))
    return DiesAt(CrashPoint(word), int(rest[0]) if rest else 1)


if __name__ == "__main__":
    log_to_stderr()
    worker = Worker(checked(WorkerSettings), preload=True, crash_points=crash_points_of(sys.argv[1:]))
    sys.exit(worker.run())
