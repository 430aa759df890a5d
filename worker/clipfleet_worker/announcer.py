"""Tells users of the ends of their jobs by a Celery task of theirs: at least once, the id repeats."""

from __future__ import annotations

import logging
import threading

from amqp.exceptions import PreconditionFailed
from celery import Celery
from kombu.entity import Queue

from clipfleet.announcements import Announcement, Announcements
from clipfleet.errors import RedisUnavailableError
from clipfleet.hints import BROKER_ERRORS, send_task
from clipfleet_worker.watchdog import Pulse

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_LEASE_SECONDS = 30.0  # after it another worker tries again
_SEND_LIMIT_SECONDS = 300.0  # calls to a broker or a Redis that is away or silent end sooner


class Announcer:
    """A thread that sends what the ledger has noted."""

    def __init__(self, announcements: Announcements, app: Celery, pulse: Pulse | None = None) -> None:
        self._pulse = pulse or Pulse("announcer")
        self._announcements = announcements
        self._app = app
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="announcer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what is left is sent by others."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._announcements.close()

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_SECONDS):
            self._announce_all()
        self._announce_all()  # `up -- COMMAND` stops its worker as soon as the command has seen the end

    def _announce_all(self) -> None:
        is_sent = True
        while is_sent:
            with self._pulse.during("announce", _SEND_LIMIT_SECONDS):
                is_sent = self.announce()

    def announce(self) -> bool:
        """Send one announcement; False if none is due, or it could not be sent now."""
        try:
            announcement = self._announcements.claim(_LEASE_SECONDS)
            if announcement is None:
                return False
            self._send(announcement)
            self._announcements.drop(announcement)
        except (RedisUnavailableError, *BROKER_ERRORS) as error:
            log.warning("no end announced: %s", error, extra={"action": "announce_failed"})
            return False
        return True

    def _send(self, announcement: Announcement) -> None:
        try:
            self._send_to(Queue(announcement.queue), announcement)  # type: ignore[no-untyped-call]  # kombu has no types
        except PreconditionFailed:  # RabbitMQ has the queue, made with other properties: it will do
            self._send_to(Queue(announcement.queue, no_declare=True), announcement)  # type: ignore[no-untyped-call]
        log.info(
            "job %s: %s was told",
            announcement.event["job_id"],
            announcement.task,
            extra={"action": "end_announced", "job_id": announcement.event["job_id"]},
        )

    def _send_to(self, queue: Queue, announcement: Announcement) -> None:
        send_task(
            self._app,
            announcement.task,
            args=[announcement.event],
            task_id=announcement.task_id,
            queue=queue,
            ignore_result=False,  # whether it has a result is the user's business
        )
