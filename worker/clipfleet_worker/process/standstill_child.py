"""Ends a worker whose Python threads have stopped running, unless it is paused.

Usage: `python -IS standstill_child.py WORKER_PID LOOKS LOOK_SECONDS`. The watchdog of the worker writes to
the standard input, a pipe, every LOOK_SECONDS. After LOOKS periods without a byte the worker gets a SIGALRM,
on which it writes its stacks and exits, and then a SIGKILL. Ends with the pipe. Imports the standard library
only.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

_LATE_SECONDS = 2.0  # a look this late: we were paused, and so was the worker
_DUMP_SECONDS = 2.0
_READ_BYTES = 4096


def watch(worker_pid: int, looks: int, look_seconds: float) -> None:
    """Watch the worker until it has ended."""
    silent = 0
    while silent < looks:
        started = time.monotonic()
        if select.select([0], [], [], look_seconds)[0]:
            if not os.read(0, _READ_BYTES):
                return
            silent = 0
        elif time.monotonic() - started > look_seconds + _LATE_SECONDS or _is_stopped(worker_pid):
            silent = 0  # count from zero again
        else:
            silent += 1
    with suppress(ProcessLookupError):
        _end(worker_pid, looks * look_seconds)


def _is_stopped(pid: int) -> bool:
    """Whether a signal or a debugger has stopped a process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # it has ended, and so has the pipe
        return False
    return stat.rpartition(")")[2].split()[0] in "Tt"


def _end(pid: int, seconds: float) -> None:
    moment = time.strftime("%Y-%m-%d %H:%M:%S")
    sys.stderr.write(
        f"{moment} CRITICAL watchdog: no thread of worker {pid} has run for {seconds:g} s, a library holds "
        "the GIL; the process ends, its leases expire [action=process_hangs]\n"
    )
    sys.stderr.flush()
    os.kill(pid, signal.SIGALRM)
    time.sleep(_DUMP_SECONDS)  # time to write the stacks
    if os.getppid() == pid:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    watch(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
