"""Sweeps outputs after the end of their jobs: what workers were writing when they were killed goes."""

from __future__ import annotations

import logging
import threading

from clipfleet.errors import OutputUnavailableError, RedisUnavailableError, UsageError
from clipfleet.sweeps import Sweep, Sweeps
from clipfleet_worker.job_contexts import JobContexts

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_LEASE_SECONDS = 300.0  # after it another worker tries again


class Sweeper:
    """A thread of its own: an output that hangs holds up nothing else."""

    def __init__(self, sweeps: Sweeps, contexts: JobContexts) -> None:
        self._sweeps = sweeps
        self._contexts = contexts
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, seconds: float = 5.0) -> None:
        """End the thread; what is left is swept by others. One that hangs ends with the process."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(seconds)
        self._sweeps.close()

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_SECONDS):
            while not self._stopping.is_set() and self.sweep():
                pass

    def sweep(self) -> bool:
        """Sweep one output; False if none is due, or Redis is away."""
        try:
            sweep = self._sweeps.claim(_LEASE_SECONDS)
            if sweep is None:
                return False
            self._sweep(sweep)
        except RedisUnavailableError as error:
            log.warning("no output swept: %s", error, extra={"action": "sweep_failed"})
            return False
        return True

    def _sweep(self, sweep: Sweep) -> None:
        try:
            context = self._contexts.get(sweep)
            if context.is_held():  # else it is another job's by now
                context.output.sweep_scratch()
        except (OutputUnavailableError, UsageError) as error:  # in better times, or by a worker that may
            context_of_log = {"action": "sweep_failed", "job_id": sweep.job_id}
            log.info("output not swept yet: %s", error, extra=context_of_log)
        else:
            self._sweeps.drop(sweep)
