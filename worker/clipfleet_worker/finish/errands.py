"""Errands for ended jobs: announcements of the end, and sweeps of outputs. Any worker runs them.

A user's Celery task gets the end of a job at least once, always with the same task id. A sweep removes the
scratch files of killed workers.
"""

from __future__ import annotations

import logging

from amqp.exceptions import PreconditionFailed
from celery import Celery
from kombu.entity import Queue

from clipfleet.errors import OutputUnavailableError, RedisUnavailableError, UsageError
from clipfleet.hints import BROKER_ERRORS, send_task
from clipfleet.ledger.errands import Announcement, Errands, Sweep
from clipfleet_worker.chunk.job_contexts import JobContexts
from clipfleet_worker.process.loop import Loop
from clipfleet_worker.process.watchdog import Pulse

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_ANNOUNCE_SECONDS, _SWEEP_SECONDS = 30.0, 300.0  # then another worker retries
_CALL_LIMIT_SECONDS = 300.0  # a call to a broker or Redis that is away or silent ends sooner
_STOP_SECONDS = 5.0  # an output that hangs ends with the process


class Announcer(Loop):
    """Sends the announcements that are due; other workers send those that this one cannot."""

    def __init__(self, errands: Errands, app: Celery, pulse: Pulse | None = None) -> None:
        super().__init__("announcer", _LOOK_SECONDS)
        self._pulse = pulse or Pulse("announcer")
        self._errands = errands
        self._app = app

    def _run(self) -> None:
        super()._run()
        self.run_once()  # those that are due: `up -- COMMAND` stops its worker as soon as a job has ended

    def run_once(self) -> None:
        while self.do_one():
            pass

    def do_one(self) -> bool:
        """Send one announcement; False if none is due, or Redis or the broker is away."""
        try:
            with self._pulse.during("announce", _CALL_LIMIT_SECONDS):
                announcement = self._errands.claim_announcement(_ANNOUNCE_SECONDS)
                if announcement is not None:
                    self._announce(announcement)
        except (RedisUnavailableError, *BROKER_ERRORS) as error:
            log.warning("end not announced: %s", error, extra={"action": "announcement_failed"})
            return False
        return announcement is not None

    def _announce(self, announcement: Announcement) -> None:
        try:
            self._send_to(Queue(announcement.queue), announcement)  # type: ignore[no-untyped-call]  # kombu has no types
        except PreconditionFailed:  # RabbitMQ has the queue with other properties: use it as it is
            self._send_to(Queue(announcement.queue, no_declare=True), announcement)  # type: ignore[no-untyped-call]
        job_id = announcement.event["job_id"]
        context = {"action": "end_announced", "job_id": job_id}
        log.info("job %s: end announced to %s", job_id, announcement.task, extra=context)
        self._errands.drop(announcement)

    def _send_to(self, queue: Queue, announcement: Announcement) -> None:
        send_task(
            self._app,
            announcement.task,
            args=[announcement.event],
            task_id=announcement.task_id,
            queue=queue,
            ignore_result=False,  # the user decides about results
        )


class Sweeper(Loop):
    """Sweeps outputs in its own thread and without a limit: a hanging output blocks nothing else."""

    def __init__(self, errands: Errands, contexts: JobContexts) -> None:
        super().__init__("sweeper", _LOOK_SECONDS, stop_seconds=_STOP_SECONDS)
        self._errands = errands
        self._contexts = contexts

    def run_once(self) -> None:
        while not self._stopping.is_set() and self.do_one():
            pass

    def do_one(self) -> bool:
        """Sweep one output; False if none is due, or Redis is away."""
        try:
            sweep = self._errands.claim_sweep(_SWEEP_SECONDS)
            if sweep is not None:
                self._sweep(sweep)
        except RedisUnavailableError as error:
            log.warning("output not swept: %s", error, extra={"action": "sweep_failed"})
            return False
        return sweep is not None

    def _sweep(self, sweep: Sweep) -> None:
        try:
            context = self._contexts.get(sweep)
            if context.is_held():  # else another job has it by now
                context.output.sweep_scratch()
        except (OutputUnavailableError, UsageError) as error:  # retried later, or by another worker
            context_of_log = {"action": "sweep_failed", "job_id": sweep.job_id}
            log.info("output not swept yet: %s", error, extra=context_of_log)
        else:
            self._errands.drop(sweep)
