"""Ends the process when a library hangs while it holds the GIL, which stops all threads.

The timer of faulthandler needs no GIL, but cannot distinguish a hang from a pause of the process: it fires
when the process resumes. So a small process counts (`standstill_child.py`). The timer is the fallback.
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
    """Called by the watchdog only."""

    def __init__(self, limit_seconds: float, look_seconds: float) -> None:
        """Prepare; nothing is counted yet.

        Args:
            limit_seconds: without any thread running, after which the process ends.
            look_seconds: between two calls of `note`.
        """
        self._limit_seconds = limit_seconds
        self._look_seconds = look_seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._exits_at_signal = False
        self._handler: int | None = None  # of SIGALRM, before

    def start(self) -> None:
        """Start counting."""
        if not _STATE.exists():  # not Linux
            return
        self._exit_at_signal()
        self._exits_at_signal = True
        looks = max(1, round(self._limit_seconds / self._look_seconds))
        facts = map(str, (os.getpid(), looks, self._look_seconds))
        # The child inherits the mask: it watches a worker that drains, too.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        try:
            self._child = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-IS", str(_CHILD), *facts],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # so that it is not stopped with the worker's group
            )
            os.set_blocking(_pipe_of(self._child), False)
        except OSError as error:
            self._fall_back(error)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def note(self) -> None:
        """Count from zero again, since threads run."""
        if self._child is not None:
            try:
                os.write(_pipe_of(self._child), b".")
            except BlockingIOError:
                pass  # a child that does not read does not count either
            except OSError as error:
                self._close()
                self._fall_back(error)
        if self._child is None:
            faulthandler.dump_traceback_later(self._limit_seconds, exit=True)

    def stop(self) -> None:
        """Stop counting."""
        faulthandler.cancel_dump_traceback_later()
        if self._exits_at_signal:
            faulthandler.unregister(signal.SIGALRM)
            _handle(signal.SIGALRM, self._handler)
        self._close()

    def _exit_at_signal(self) -> None:
        """Make SIGALRM write all stacks and exit, in C, without the GIL.

        It calls `_exit` with the number of the signal: no signal ends process 1 of a container, not even
        SIGKILL.
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

    def _fall_back(self, error: OSError) -> None:
        log.warning(
            "cannot start the process that detects hangs (%s): a pause of more than %g s ends this worker",
            error.strerror,
            self._limit_seconds,
            extra={"action": "standstill_unwatched"},
        )


def _pipe_of(child: subprocess.Popen[bytes]) -> int:
    if child.stdin is None:
        raise ValueError("the child was started without a pipe")
    return child.stdin.fileno()


def _handle(number: signal.Signals, handler: int | None) -> int | None:
    """Set a C function as the handler of a signal, or the default (None); returns the one before."""
    set_handler = ctypes.CDLL(None).signal
    set_handler.argtypes, set_handler.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    before: int | None = set_handler(number, handler)
    return before
