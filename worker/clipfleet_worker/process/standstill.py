"""Ends the process when a library hangs with Python's own lock in its hands, which stops all threads.

A timer of faulthandler's needs no lock, but it cannot tell a hang from a pause of the process: it fires as
the process goes on. So a small process beside this one counts (`standstill_child.py`). Where it cannot be
had, the timer is better than nothing.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

_CHILD = Path(__file__).with_name("standstill_child.py")
_STATE = Path("/proc/self/stat")
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
_END_SECONDS = 5.0
_STDERR = 2


class Standstill:
    """All methods belong to the watchdog."""

    def __init__(self, limit_seconds: float, look_seconds: float) -> None:
        """Nothing is counted yet.

        Args:
            limit_seconds: so long no thread has to run before the process is ended.
            look_seconds: between two calls of `note`.
        """
        self._limit_seconds = limit_seconds
        self._look_seconds = look_seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._exits_at_signal = False
        self._handler: int | None = None  # of SIGALRM, before

    def start(self) -> None:
        """Start to count."""
        if not _STATE.exists():  # not Linux
            return
        self._exit_at_signal()
        self._exits_at_signal = True
        looks = max(1, round(self._limit_seconds / self._look_seconds))
        facts = map(str, (os.getpid(), looks, self._look_seconds))
        # The child keeps the mask: a worker that is told to end drains, and is watched meanwhile.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        try:
            self._child = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-IS", str(_CHILD), *facts],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # nor is it stopped with the worker's group
            )
            os.set_blocking(_pipe_of(self._child), False)
        except OSError as error:
            self._make_do(error)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def note(self) -> None:
        """Threads run: count from zero again."""
        if self._child is not None:
            try:
                os.write(_pipe_of(self._child), b".")
            except BlockingIOError:
                pass  # whoever does not read counts nothing either
            except OSError as error:
                self._close()
                self._make_do(error)
        if self._child is None:
            faulthandler.dump_traceback_later(self._limit_seconds, exit=True)

    def stop(self) -> None:
        """Count no more."""
        faulthandler.cancel_dump_traceback_later()
        if self._exits_at_signal:
            faulthandler.unregister(signal.SIGALRM)
            _handle(signal.SIGALRM, self._handler)
        self._close()

    def _exit_at_signal(self) -> None:
        """Have SIGALRM write all stacks and exit, in C, which needs no lock of Python's.

        By `_exit`, with the number of the signal: no signal ends process 1 of a container, not even SIGKILL.
        """
        self._handler = _handle(signal.SIGALRM, ctypes.cast(ctypes.CDLL(None)._exit, ctypes.c_void_p).value)
        faulthandler.register(signal.SIGALRM, file=_STDERR, all_threads=True, chain=True)

    def _close(self) -> None:
        child, self._child = self._child, None
        if child is None or child.stdin is None:
            return
        child.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            child.wait(_END_SECONDS)

    def _make_do(self, error: OSError) -> None:
        log.warning(
            "no process watches over this one (%s): a pause of more than %g s will end it",
            error.strerror,
            self._limit_seconds,
            extra={"action": "standstill_unwatched"},
        )


def _pipe_of(child: subprocess.Popen[bytes]) -> int:
    if child.stdin is None:
        raise ValueError("the child was started without a pipe")
    return child.stdin.fileno()


def _handle(number: signal.Signals, handler: int | None) -> int | None:
    """Set a function of C as the handler of a signal; returns the one before. None is the default."""
    set_handler = ctypes.CDLL(None).signal
    set_handler.argtypes, set_handler.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    before: int | None = set_handler(number, handler)
    return before
