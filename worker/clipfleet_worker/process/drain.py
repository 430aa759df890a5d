"""How a worker goes after SIGTERM: what can end in time does, the rest is given back, nothing lasts longer.

Threads cannot be stopped, so the last word is the process's own exit: 0 where everything was given back,
else, a little later, the watchdog's.
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

_RESERVE_SECONDS = 5.0  # at most: of the time to drain, for giving back and closing
_GRACE_SECONDS = 5.0  # after it the watchdog ends what still hangs
_REASON = "the worker leaves"


class Leaver(Protocol):
    """What a draining worker does, in this order; the worker ends by itself meanwhile if it can."""

    def take_nothing_more(self) -> None:
        """No claim from now on."""

    def interrupt(self, reason: str) -> None:
        """Have every chunk that is held given back by whoever works on it."""

    def give_back(self, reason: str) -> bool:
        """Give back what is held all the same, whatever its thread is doing; False if the ledger is away."""


class Drain:
    """Waits in a thread for `begin`; from then on the process has `drain_seconds`."""

    def __init__(
        self,
        leaver: Leaver,
        drain_seconds: float,
        *,
        pulse: Pulse | None = None,
        exit_process: Callable[[int], None] = os._exit,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing happens yet.

        Args:
            leaver: what is drained.
            drain_seconds: from `begin` to the end of the process.
            pulse: where the watchdog sees a drain that hangs.
            exit_process: called with 0 when the time is over and everything was given back; does not return.
            monotonic: seconds that only go forward.
        """
        self._leaver = leaver
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
        """Whether the worker leaves."""
        return self._begun.is_set()

    @property
    def for_seconds(self) -> float:
        """How long the worker has been leaving; 0 if it does not."""
        return 0.0 if self._began is None else self._monotonic() - self._began

    def start(self) -> None:
        """Start the thread, which waits."""
        self._thread.start()

    def begin(self) -> None:
        """The worker leaves. Safe in a signal handler, and more than once: it only takes note."""
        if self._began is None:
            self._began = self._monotonic()
        self._begun.set()

    def end(self) -> None:
        """The worker has ended by itself: nothing more is to be done."""
        self._ended.set()

    def _run(self) -> None:
        self._begun.wait()
        self._pulse.enter("drain", self._drain_seconds + _GRACE_SECONDS)
        log.info("worker drains", extra={"action": "drain"})
        self._leaver.take_nothing_more()
        if self._ended.wait(self._drain_seconds - self._reserve_seconds):
            return
        self._leaver.interrupt(_REASON)
        if self._ended.wait(self._reserve_seconds * 0.35):
            return
        given_back = self._give_back()
        if self._ended.wait(self._reserve_seconds * 0.35):
            return
        if given_back.result():  # however long that takes: the watchdog does not wait
            log.warning(
                "the time to drain is over; everything was given back, the process ends",
                extra={"action": "drain_cut"},
            )
            self._exit_process(0)

    def _give_back(self) -> Future[bool]:
        """In a thread of its own: Redis may be silent, and nobody can wait for that twice."""
        answer: Future[bool] = Future()

        def give_back() -> None:
            answer.set_result(self._leaver.give_back(_REASON))

        try:
            threading.Thread(target=give_back, name="give-back", daemon=True).start()
        except RuntimeError:  # the machine refuses another thread
            give_back()
        return answer


def end_process(exit_code: int) -> NoReturn:
    """End now. Threads that load a model or read a file would keep the interpreter from it, or crash."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(exit_code)
