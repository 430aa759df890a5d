"""Works without hints, which may be lost, or whose broker may be away."""

from __future__ import annotations

from clipfleet_worker.chunk.claims import Claims
from clipfleet_worker.hints.tasks import Tasks
from clipfleet_worker.process.loop import Loop
from clipfleet_worker.process.watchdog import Pulse

_PULL_SECONDS = 2.0  # an idle worker pulls after this long without a hint


class Puller(Loop):
    """Claims a chunk while no hint waits for a slot; the hint of a claimed chunk starts a new chain.

    So there are about as many chains as slots. After a chunk the puller continues at once: the workers that
    get the hints may serve other models, or be too old.
    """

    def __init__(self, tasks: Tasks, claims: Claims, pulse: Pulse, stop_seconds: float | None = None) -> None:
        super().__init__("puller", _PULL_SECONDS, stop_seconds=stop_seconds)
        self._pulse = pulse
        self._tasks = tasks
        self._claims = claims

    def run_once(self) -> None:
        """Pull once."""
        self.pull()
        self._pulse.rest()

    def pull(self) -> None:
        """Finish jobs and process chunks while there are any, and no hint waits for the slot."""
        while not self._stopping.is_set():
            # No limit: its lease has a limit per step.
            self._pulse.rest("finish jobs")
            while not self._stopping.is_set() and self._tasks.finish_job():
                pass
            self._pulse.rest("pull")
            if not (self._claims.has_idle_slot(_PULL_SECONDS) and self._tasks.work()):
                return
