"""Several worker processes under one parent, which starts, restarts and drains them.

The parent loads neither torch nor a model and does not use Redis.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from clipfleet.terminal.program import EXIT_USAGE
from clipfleet_worker.machine.child import POLL_SECONDS, Child
from clipfleet_worker.machine.plan import WorkerShare, share_settings
from clipfleet_worker.machine.restarts import Restarter
from clipfleet_worker.machine.signals import SignalRecorder

log = logging.getLogger(__name__)

_READY_FILE = "CLIPFLEET_READY_FILE"


class Processes:
    """The workers of one machine, for one run. Main thread only."""

    def __init__(
        self,
        shares: Sequence[WorkerShare],
        *,
        stop_seconds: float,
        environment: Mapping[str, str],
        program: Sequence[str] = (sys.executable, "-P", "-m", "clipfleet_worker", "run"),
    ) -> None:
        """Describe the run; nothing is started.

        Args:
            shares: the processes.
            stop_seconds: between SIGTERM and SIGKILL; longer than their drain.
            environment: of the user; the share of each process is added.
            program: command line of a worker; its name is added.
        """
        self._stop_seconds = stop_seconds
        self._ready_file = Path(environment[_READY_FILE]) if environment.get(_READY_FILE) else None
        self._was_ready = False
        self._signals = SignalRecorder(signal.SIGQUIT)
        self._ports: dict[Child, str | None] = {}
        for share in shares:
            settings = {**environment, **share_settings(share, len(shares), environment)}
            child = Child(
                f"worker {share.name}",
                [*program, "--name", share.name],
                log=None,
                apart=True,
                env=settings,
                ready_file=Path(settings[_READY_FILE]) if self._ready_file else None,
            )
            self._ports[child] = settings.get("CLIPFLEET_HEALTH_PORT")
        self._children = list(self._ports)

    def _start(self, child: Child) -> None:
        child.start()
        port = self._ports[child]
        where = f", health port {port}" if port else ""
        log.info("%s has pid %d%s", child.name, child.pid, where, extra={"action": "process_started"})

    def run(self) -> int:
        """Keep the workers running until a signal comes, then drain them.

        Returns:
            The exit code: 0 if all have drained, else that of one that has not. 2 if the first start of one
            fails because of its settings: a restart would not help.
        """
        with self._signals:
            try:
                return self._run()
            finally:
                for child in self._children:
                    child.kill()

    def _run(self) -> int:
        for child in self._children:
            self._start(child)
        restarters = [Restarter(child, partial(self._start, child)) for child in self._children]
        in_first_life = set(self._children)
        while not self._signals.pending:
            ended = {child for child in in_first_life if not child.alive}
            if any(child.exit_code == EXIT_USAGE for child in ended):
                log.error(
                    "a worker rejects its settings; all stop",
                    extra={"action": "processes_end"},
                )
                self._drain()
                return EXIT_USAGE
            in_first_life -= ended
            for restarter in restarters:
                if message := restarter.poll():
                    log.warning("%s", message, extra={"action": "process_ended"})
            self._report_ready()
            time.sleep(POLL_SECONDS)
        log.info("draining all workers", extra={"action": "drain"})
        return self._drain()

    def _report_ready(self) -> None:
        """Create the ready file as soon as all workers take work."""
        if self._ready_file is not None and not self._was_ready:
            self._was_ready = all(child.probe() for child in self._children)
            if self._was_ready:
                self._ready_file.touch()

    def _drain(self) -> int:
        """Drain all workers. Further signals change nothing, as in a worker that drains."""
        draining = [child for child in self._children if child.alive]
        for child in draining:
            child.send(signal.SIGTERM)
        deadline = time.monotonic() + self._stop_seconds
        while any(child.alive for child in draining) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        for child in draining:
            if child.alive:
                log.error("%s does not end, killing it", child.name, extra={"action": "process_killed"})
                child.kill()
        codes = [child.exit_code or 0 for child in draining]
        # One that dies of our SIGTERM was still importing: it held nothing.
        failed = (code for code in codes if code not in (0, -signal.SIGTERM))
        return next((code if code > 0 else 128 - code for code in failed), 0)
