"""Signals that a loop acts on, not their handlers."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any, Self


class SignalRecorder:
    """Records SIGINT, SIGTERM and SIGHUP while entered, for a loop that acts on them. Main thread only.

    Args:
        more: further signals to record.
    """

    def __init__(self, *more: signal.Signals) -> None:
        self._numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, *more)
        self._received: list[signal.Signals] = []
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in self._numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:  # ignored: nohup, or a script's background job
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    @property
    def pending(self) -> bool:
        """Whether there are signals to take."""
        return bool(self._received)

    def take(self) -> list[signal.Signals]:
        """The signals since the last call, oldest first."""
        taken, self._received = self._received, []
        return taken

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._received.append(signal.Signals(number))
