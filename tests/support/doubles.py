"""Doubles of several unit tests: a clock moved by hand, a condition that reports waiters."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

PATIENCE_SECONDS = 60.0  # for what must happen


class Clock:
    """Monotonic seconds that only move when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class WatchedCondition(threading.Condition):
    """A condition that reports when a thread is about to wait without a time limit."""

    def __init__(self) -> None:
        super().__init__()
        self.somebody_waits = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        """See threading.Condition; the lock is held until the wait begins, so nothing comes in between."""
        if timeout is None:
            self.somebody_waits.set()
        return super().wait(timeout)


class InThread:
    """A call in a thread of its own, whose answer or exception `result` brings back."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._answer: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._answer = self._call()
        except BaseException as error:
            self._error = error

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> Any:
        self._thread.join(PATIENCE_SECONDS)
        assert self.is_done, "the call did not return"
        if self._error is not None:
            raise self._error
        return self._answer
