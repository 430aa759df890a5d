"""Drains a worker after SIGTERM: chunks end in time or are released, then the process ends.

Threads cannot be stopped, so the process exits by itself: with 0 if every chunk is released; else the
watchdog ends it a little later.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import NoReturn, Protocol

from clipfleet_worker.process.watchdog import Pulse

log = logging.getLogger(__name__)

_RESERVE_SECONDS = 5.0  # at most: of the time to drain, for releasing and closing
_GRACE_SECONDS = 5.0  # after it the watchdog ends what still hangs
_REASON = "the worker drains"


class Drainable(Protocol):
    """The steps of a drain, in order. The worker may end by itself in between."""

    def stop_claiming(self) -> None:
        """Claim nothing from now on."""

    def interrupt(self, reason: str) -> None:
        """Interrupt every held chunk, so that its thread releases it."""

    def release_all(self, reason: str) -> bool:
        """Release the chunks that are still held, whatever their threads do; False if the ledger is away."""


class Drain:
    """Waits in a thread for `begin`; from then on the process has `drain_seconds`."""

    def __init__(
        self,
        worker: Drainable,
        drain_seconds: float,
        *,
        pulse: Pulse | None = None,
        exit_process: Callable[[int], None] = os._exit,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; nothing runs yet.

        Args:
            worker: what is drained.
            drain_seconds: from `begin` to the end of the process.
            pulse: by which the watchdog sees a drain that hangs.
            exit_process: called with 0 when the time is over and every chunk is released; does not return.
            monotonic: seconds that only go forward.
        """
        self._worker = worker
        self._drain_seconds = drain_seconds
        self._reserve_seconds = min(_RESERVE_SECONDS, drain_seconds / 2)
        self._pulse = pulse or Pulse("drain")
        self._exit_process = exit_process
        self._begun = threading.Event()
        self._began: float | None = None
        self._monotonic = monotonic
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drain", daemon=True)

    @property
    def has_begun(self) -> bool:
        """Whether the worker drains."""
        return self._begun.is_set()

    @property
    def for_seconds(self) -> float:
        """Seconds since `begin`; 0 before it."""
        return 0.0 if self._began is None else self._monotonic() - self._began

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def begin(self) -> None:
        """Begin draining. Idempotent and async-signal-safe: it only sets a flag."""
        if self._began is None:
            self._began = self._monotonic()
            self._begun.set()  # once: a signal during `set` would wait for its lock for ever

    def end(self) -> None:
        """Record that the worker has ended by itself: the drain is over."""
        self._ended.set()

    def _run(self) -> None:
        self._begun.wait()
        self._pulse.enter("drain", self._drain_seconds + _GRACE_SECONDS)
        log.info("worker drains", extra={"action": "drain"})
        self._worker.stop_claiming()
        if self._ended.wait(self._drain_seconds - self._reserve_seconds):
            return
        self._worker.interrupt(_REASON)
        if self._ended.wait(self._reserve_seconds * 0.35):
            return
        released = self._release_all()
        if self._ended.wait(self._reserve_seconds * 0.35):
            return
        if released.result():  # however long that takes: the watchdog does not wait
            log.warning(
                "the time to drain is over; every chunk is released, the process ends",
                extra={"action": "drain_cut"},
            )
            self._exit_process(0)

    def _release_all(self) -> Future[bool]:
        """Release in another thread, since a silent Redis must not delay the end."""
        answer: Future[bool] = Future()

        def release() -> None:
            answer.set_result(self._worker.release_all(_REASON))

        try:
            threading.Thread(target=release, name="release", daemon=True).start()
        except RuntimeError:  # the machine refuses another thread
            release()
        return answer


def end_process(exit_code: int) -> NoReturn:
    """Exit now: threads that load a model or read a file would delay the interpreter's end, or crash it."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(exit_code)
