"""A thread that takes turns: the base of the loops beside the chunks."""

from __future__ import annotations

import threading


class Loop:
    """A thread that takes a turn, again and again, until it is stopped."""

    def __init__(
        self, name: str, period_seconds: float, *, at_once: bool = False, stop_seconds: float | None = None
    ) -> None:
        """Nothing runs yet.

        Args:
            name: of the thread.
            period_seconds: between the end of a turn and the next one.
            at_once: without a wait before the first turn.
            stop_seconds: how long `stop` waits for a turn to end; None: for ever.
        """
        self._period_seconds = period_seconds  # a turn may change it
        self._at_once = at_once
        self._stop_seconds = stop_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def turn(self) -> object:
        """What the thread does; may be called by a test."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def leave(self) -> None:
        """Have the thread end, after this turn."""
        self._stopping.set()

    def stop(self) -> None:
        """Likewise, and wait for it."""
        self.leave()
        if self._thread.is_alive():
            self._thread.join(self._stop_seconds)

    def _run(self) -> None:
        if self._at_once:
            self.turn()
        while not self._stopping.wait(self._period_seconds):
            self.turn()
