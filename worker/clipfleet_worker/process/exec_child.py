"""Becomes a child process that dies with its supervisor: sets that up, then calls exec (same pid).

Usage: `python -IS exec_child.py SUPERVISOR_PID COMMAND ARGUMENT...`. Runs without site-packages, so it
imports the standard library only. Not a `preexec_fn`: that runs Python between fork and exec of a process
that may have threads, which can deadlock.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_NOT_EXECUTABLE = 126  # the shells' exit codes
_NOT_FOUND = 127


def die_with(supervisor_pid: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Ask the kernel for a signal when the thread that started this process ends (Linux only)."""
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        sys.stderr.write(f"prctl: {os.strerror(ctypes.get_errno())}\n")
    if os.getppid() != supervisor_pid:  # it died before prctl: no signal will come
        os._exit(128 + signal.SIGTERM)


def reset_signals() -> None:
    """Undo what exec inherits: the mask, and ignored signals (SIGPIPE by Python, SIGINT by scripts)."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def become(argv: list[str]) -> NoReturn:
    """Replace this process; exit with a shell's exit code if that fails."""
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - no shell wanted
    except OSError as error:
        sys.stderr.write(f"cannot run {argv[0]}: {error.strerror}\n")
        sys.stderr.flush()
        os._exit(_NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE)


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    reset_signals()
    become(sys.argv[2:])
