"""A process that has imported everything a worker needs, and forks workers: `python -m ops.chaos.nursery`.

Hundreds of workers are killed in a run, and importing torch takes longer than the life of some. What a fork
runs is what `clipfleet-worker run` runs, a `Worker` of its own from its environment; nothing but modules is
shared, for this process has one thread and opens nothing. Orders come as lines of JSON on stdin, and what
became of the workers goes to stdout. Its workers die with it, and it dies when stdin ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

_POLL_SECONDS = 0.02
_PR_SET_PDEATHSIG = 1

Body = Callable[[Path], int]  # runs a worker to its end: folder of its slot -> exit code


def clipfleet_worker(folder: Path) -> NoReturn:
    """What `clipfleet-worker run` does; the slot's folder arms crash points, and claims are noted there."""
    from clipfleet.settings import checked
    from clipfleet_worker.assembly import worker as lifecycle
    from clipfleet_worker.process.drain import end_process
    from clipfleet_worker.process.logs import log_to_stderr
    from clipfleet_worker.settings import WorkerSettings
    from ops.chaos.armed import ARMED, ArmedCrashPoints
    from ops.chaos.claims import NotingLedger
    from ops.chaos.crash_points import stand_in_worker

    log_to_stderr()
    # What is not as `run` builds it: a ledger that says who claimed what when, and crash points.
    lifecycle.Ledger = NotingLedger  # type: ignore[attr-defined]
    crash_points = ArmedCrashPoints(folder / ARMED)
    crash_points.stand_before_publishing()
    stand_in_worker(crash_points.reach)
    worker = lifecycle.Worker(checked(WorkerSettings), preload=True)
    end_process(worker.run())


def plain_worker(folder: Path) -> int:
    """See `ops.chaos.plain_worker`."""
    from ops.chaos.plain_worker import run_worker

    return run_worker(folder)


BODIES: dict[str, Body] = {"clipfleet": clipfleet_worker, "plain": plain_worker}


class Nursery:
    """Forks on demand, reaps, reports."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}  # of the living, by process id
        self._orders = b""  # read so far, the last one perhaps not whole

    def run(self) -> None:
        """Until stdin ends."""
        while True:
            ready, _, _ = select.select([0], [], [], _POLL_SECONDS)
            if ready:
                data = os.read(0, 1 << 16)
                if not data:
                    return
                *lines, self._orders = (self._orders + data).split(b"\n")
                for line in lines:
                    self._start(json.loads(line))
            self._reap()

    def _start(self, order: dict[str, Any]) -> None:
        pid = os.fork()
        if pid == 0:
            _become_worker(order)
        self._numbers[pid] = order["number"]
        _report(started=order["number"], pid=pid)

    def _reap(self) -> None:
        while self._numbers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            ended_at = time.monotonic()
            number = self._numbers.pop(pid, None)
            if number is not None:
                _report(ended=number, code=os.waitstatus_to_exitcode(status), at=ended_at)


def _report(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def _become_worker(order: dict[str, Any]) -> NoReturn:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.setsid()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # as in `run`, until the worker holds anything
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    for name, most in order["limits"].items():
        resource.setrlimit(getattr(resource, name), (most, most))  # a worker takes all that it may
    os.environ.update(order["environment"])
    os.chdir(order["folder"])
    sys.exit(BODIES[order["body"]](Path(order["folder"])))


def main() -> None:
    """Import, report that, fork."""
    import open_clip  # noqa: F401 - what the forks need, so that they need not wait for it
    import torch

    import clipfleet_worker.assembly.worker
    import clipfleet_worker.decode.decoder
    import clipfleet_worker.models.open_clip_models  # noqa: F401
    from clipfleet_worker.machine.signals import SignalRecorder

    torch.set_num_threads(1)
    _report(ready=True)
    with SignalRecorder():  # Ctrl-C is the harness's affair, which ends us by closing stdin
        Nursery().run()
    os._exit(0)  # torch takes seconds to take itself down


if __name__ == "__main__":
    main()
