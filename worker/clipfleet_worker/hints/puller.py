"""Work without a hint: it may be lost, or the broker away."""

from __future__ import annotations

from clipfleet_worker.chunk.claims import Claims
from clipfleet_worker.hints.tasks import Tasks
from clipfleet_worker.process.loop import Loop
from clipfleet_worker.process.watchdog import Pulse

_PULL_SECONDS = 2.0  # an idle worker that saw no hint this long looks for work by itself


class Puller(Loop):
    """Works without a hint: it may be lost, or the broker away. A successful claim starts a new chain.

    Only while no hint is waiting for a slot, so that there are never many more chains than slots. Where it
    found work it looks again at once: if those who hear the hints may not do it (they serve other models, or
    are of an older version), nobody else does.
    """

    def __init__(self, tasks: Tasks, claims: Claims, pulse: Pulse, stop_seconds: float | None = None) -> None:
        super().__init__("puller", _PULL_SECONDS, stop_seconds=stop_seconds)
        self._pulse = pulse
        self._tasks = tasks
        self._claims = claims

    def run_once(self) -> None:
        """Work, if nobody else does."""
        self.pull()
        self._pulse.rest()

    def pull(self) -> None:
        """Finish jobs and work as long as there is something, and no hint wants the slot."""
        while not self._stopping.is_set():
            # Without a limit: what it does has a lease, whose steps have theirs.
            self._pulse.rest("finish jobs")
            while not self._stopping.is_set() and self._tasks.finish_job():
                pass
            self._pulse.rest("pull")
            if not (self._claims.has_idle_slot(_PULL_SECONDS) and self._tasks.work()):
                return
