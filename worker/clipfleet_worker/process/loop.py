"""The base of the threads that run beside the chunks."""

from __future__ import annotations

import threading


class Loop:
    """A thread that calls `run_once` periodically until it is stopped."""

    def __init__(
        self, name: str, period_seconds: float, *, at_once: bool = False, stop_seconds: float | None = None
    ) -> None:
        """Prepare the thread; it does not run yet.

        Args:
            name: of the thread.
            period_seconds: between the end of a call and the next one.
            at_once: whether the first call comes at once, without a wait.
            stop_seconds: how long `stop` waits for a call to end; None: without limit.
        """
        self._period_seconds = period_seconds  # `run_once` may change it
        self._at_once = at_once
        self._stop_seconds = stop_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def run_once(self) -> object:
        """Do the loop's work once."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def request_stop(self) -> None:
        """End the thread after the present call; returns at once."""
        self._stopping.set()

    def stop(self) -> None:
        """End the thread after the present call, and wait for that."""
        self.request_stop()
        if self._thread.is_alive():
            self._thread.join(self._stop_seconds)

    def _run(self) -> None:
        if self._at_once:
            self.run_once()
        while not self._stopping.wait(self._period_seconds):
            self.run_once()
