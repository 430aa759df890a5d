"""Hints on the broker. A hint means "there is work" and carries nothing: a lost or doubled one costs seconds.

Used by producers and workers. Depends on Celery, not on what a worker does with a hint.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from amqp.exceptions import AMQPError
from celery import Celery
from kombu.exceptions import KombuError, OperationalError

from clipfleet.errors import UsageError
from clipfleet.ledger import keys
from clipfleet.redis.connection import masked
from clipfleet.redis.url import broker_of

log = logging.getLogger(__name__)

MAX_HINTS = 64  # per job, whatever its size: every successful claim publishes the next one

# What publishing may raise: kombu passes on most refusals of RabbitMQ unchanged.
BROKER_ERRORS = (KombuError, AMQPError, OSError)

_PUBLISH_PAUSES_SECONDS = (0.2, 0.4, 0.6)  # before each further try

# Connection attempts of kombu: its defaults take 4 s for each publish while the broker is down.
_CONNECT_RETRIES: dict[str, Any] = {"max_retries": 1, "interval_start": 0.2}

# Each value avoids a fault of Celery on Redis that was measured.
REDIS_TRANSPORT_OPTIONS: dict[str, Any] = {
    "visibility_timeout": 1800,  # only for clean-up: the ledger recovers work
    "unacked_restore_interval": 5,
    "unacked_restore_throttle": 1,  # the default sweeps only every tenth time
    "unacked_restore_limit": 100,  # a sweep runs on the worker's event loop
    "unacked_mutex_expire": 30,  # a worker that is killed in a sweep blocks others for this long
    "socket_timeout": 4,  # else acks hang for ever on a dead peer
    "socket_connect_timeout": 3,
    "socket_keepalive": True,
    "health_check_interval": 3,  # detects a silent connection
    "priority_steps": [0],  # hints have no priority: the ledger has lanes
}


def make_app(broker_url: str) -> Celery:
    """Make a Celery app that can publish hints, with the settings that producer and worker share.

    Raises:
        UsageError: the URL cannot be used.
    """
    try:
        broker = broker_of(broker_url)
    except ValueError as error:
        raise UsageError(f"CLIPFLEET_REDIS_URL cannot be used: {error}") from None
    is_redis = broker_url.startswith(("redis", "sentinel"))
    app = Celery("clipfleet", broker=broker.url, set_as_current=False)
    app.conf.update(
        broker_transport_options=_CONNECT_RETRIES
        | (REDIS_TRANSPORT_OPTIONS | broker.transport_options if is_redis else {}),
        broker_use_ssl=broker.use_ssl,
        broker_pool_limit=4,
        broker_pool_acquire_timeout=10,  # raise instead of blocking for ever
        broker_connection_timeout=4,
        task_default_queue=keys.QUEUE,
        task_serializer="json",
        accept_content=["json"],
        result_accept_content=["json"],
        task_ignore_result=True,  # the ledger is the state
        result_backend=None,
        enable_utc=True,
    )
    return app


def send_task(app: Celery, name: str, **options: Any) -> None:
    """Send a Celery task; retry on a new connection if this one is lost.

    Celery's own retry does not work: if the connection is lost while kombu declares the queue, kombu declares
    it on a new one, and then sends on a channel of the old one, which raises AttributeError.

    Raises:
        BROKER_ERRORS: the broker is unavailable, or refuses.
    """
    for pause_seconds in (*_PUBLISH_PAUSES_SECONDS, None):
        with app.producer_or_acquire() as producer:
            try:
                app.send_task(name, producer=producer, retry=False, **options)
                return
            except (OperationalError, OSError):
                if pause_seconds is None:
                    raise
                producer.connection.collect()
        time.sleep(pause_seconds)


class Hints:
    """Publishes hints. An unavailable broker is logged, never raised: idle workers poll the ledger anyway."""

    def __init__(self, app: Celery, broker_url: str) -> None:
        self._app = app
        self._where = masked(broker_url)

    def publish_work(self, count: int = 1) -> None:
        """Publish that there are chunks to claim."""
        self._publish(keys.WORK_TASK, count)

    def publish_finish(self) -> None:
        """Publish that a job is to be finished."""
        self._publish(keys.FINISH_TASK, 1)

    def _publish(self, task: str, count: int) -> None:
        try:
            for _ in range(count):
                send_task(self._app, task, argsrepr="-", kwargsrepr="-")
        except BROKER_ERRORS as error:
            log.warning(
                "hint not published on %s: %s", self._where, error, extra={"action": "hint_not_published"}
            )

    def close(self) -> None:
        """Close the connections to the broker."""
        self._app.close()
