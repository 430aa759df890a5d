"""Celery as we use it: the app, its worker, its consumer of hints and its threads.

They survive a broker that goes away, messages that are not hints, and a machine that refuses another thread.
The consumer publishes the pulse of its event loop. Every signal that ends the worker drains it.
"""

from __future__ import annotations

import logging
import signal
from functools import partial
from types import FrameType
from typing import Any

from celery import Celery, bootsteps, signals
from celery.apps.worker import Worker as CeleryWorker
from celery.concurrency.thread import TaskPool
from celery.worker import state
from celery.worker.consumer import Consumer
from kombu.entity import Queue

from clipfleet.hints import make_app
from clipfleet.ledger import keys
from clipfleet_worker.hints.guard import Handler, HintGuard
from clipfleet_worker.process.shortages import LenientThreadPool, shortage_behind
from clipfleet_worker.process.watchdog import Pulse

log = logging.getLogger(__name__)

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
_EXIT_CODE = 0

_BEAT_SECONDS = 1.0
_PULSE_LIMIT_SECONDS = 120.0  # between two beats; each call to a silent broker ends sooner


class SurvivingConsumer(Consumer):  # type: ignore[misc]  # Celery has no types
    """A consumer that survives a failed clean-up of a lost broker connection.

    Seen in 4 of 28 Redis restarts: closing the dead channel raised AttributeError, and the worker exited.
    """

    def __init__(self, *args: Any, pulse: Pulse, guard: HintGuard, **kwargs: Any) -> None:
        self._pulse = pulse
        self._guard = guard
        super().__init__(*args, **kwargs)

    def register_with_event_loop(self, hub: Any) -> None:
        """Guard a new connection, and start its timer, which ends with it."""
        super().register_with_event_loop(hub)
        self._guard.guard_redis(self.task_consumer.channel)
        hub.timer.call_repeatedly(_BEAT_SECONDS, self._beat)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Handler:
        """Guard the handler of a new connection."""
        return self._guard.guarded(super().create_task_handler(*args, **kwargs))

    def _beat(self) -> None:
        if self.blueprint.state == bootsteps.RUN:  # a drain has a limit of its own
            self._pulse.enter("handle events", _PULSE_LIMIT_SECONDS)

    def on_close(self) -> None:
        """Rest until the next connection, or the end."""
        self._pulse.rest("no connection to the broker")
        super().on_close()

    def on_connection_error_after_connected(self, exc: BaseException) -> None:
        """Clean up and reconnect."""
        try:
            super().on_connection_error_after_connected(exc)
        except (AttributeError, OSError, RuntimeError) as error:
            self.connection = None
            log.warning(
                "clean-up of a lost broker connection failed: %r; reconnecting",
                error,
                extra={"action": "broker_cleanup_failed"},
            )


class HintThreads(TaskPool):  # type: ignore[misc]  # Celery has no types
    """Celery's pool of threads, which survives a thread that cannot be started."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.executor = LenientThreadPool(self.limit)

    def on_apply(self, *args: Any, **kwargs: Any) -> Any:
        """Start a hint. Without any thread it stays queued: the puller needs no hints."""
        try:
            return super().on_apply(*args, **kwargs)
        except RuntimeError as error:
            shortage = shortage_behind(error)
            if shortage is None:
                raise
            log.warning("hint waits for a thread: %s", shortage, extra={"action": "hint_without_thread"})
            return None


class DrainingWorker(CeleryWorker):  # type: ignore[misc]  # Celery has no types
    """Celery's worker, which drains on every ending signal, also on repeated ones.

    On a second SIGINT and a first SIGQUIT Celery cancels its threads. That cannot be done: the worker would
    hang, or end without releasing its chunks. Ignored signals stay ignored: nohup, a script's background job.
    """

    app: Celery
    _is_draining = False

    def install_platform_tweaks(self, worker: Any) -> None:
        """Install our signal handlers, in the main thread, before the start."""
        ignored = [number for number in _ENDING if signal.getsignal(number) is signal.SIG_IGN]
        super().install_platform_tweaks(worker)
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN if number in ignored else self._drain)

    def _drain(self, number: int, _frame: FrameType | None) -> None:
        if self._is_draining:  # Celery's `send` holds a lock: a signal during it would wait for ever
            return
        self._is_draining = True
        name = signal.Signals(number).name
        signals.worker_shutting_down.send(sender=self.hostname, sig=name, how="Warm", exitcode=_EXIT_CODE)
        state.should_stop = _EXIT_CODE


def make_worker_app(broker_url: str, *, slots: int, events: bool, pulse: Pulse, guard: HintGuard) -> Celery:
    """Make the app that consumes hints.

    Args:
        broker_url: Redis or RabbitMQ.
        slots: chunks in progress at a time.
        events: send task events, which Flower needs and nothing else.
        pulse: of the event loop.
        guard: filters messages before their handlers.
    """
    app = make_app(broker_url)
    app.conf.update(
        worker_pool=HintThreads,  # one process owns the device, the model and the batcher
        worker_concurrency=slots,
        worker_prefetch_multiplier=1,  # holds as many hints as slots, no more
        task_acks_late=True,  # a hint is acked when its chunk has ended
        task_queues=[Queue(keys.QUEUE)],  # type: ignore[no-untyped-call]  # kombu has no types
        task_create_missing_queues=False,  # a typo must fail, not create a queue
        broker_connection_retry_on_startup=True,  # start before Redis is up
        broker_connection_max_retries=None,  # the default gives up after 100
        broker_channel_error_retry=True,  # survive READONLY answers of a demoted Redis
        worker_consumer=partial(SurvivingConsumer, pulse=pulse, guard=guard),
        worker_cancel_long_running_tasks_on_connection_loss=False,  # threads cannot be; leases fence
        worker_enable_prefetch_count_reduction=True,
        worker_soft_shutdown_timeout=0,  # with threads it only sleeps; the worker drains by itself
        worker_send_task_events=events,
        task_send_sent_event=events,
        worker_enable_remote_control=events,  # fewer keys and connections without Flower
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    )
    return app


def run_worker(app: Celery, name: str) -> int:
    """Run Celery's worker until a signal ends it; returns its exit code."""
    signals.setup_logging.connect(_keep_logging)
    worker = DrainingWorker(
        app=app,
        hostname=name,
        quiet=True,
        loglevel="INFO",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def _keep_logging(**_: object) -> None:
    """Do nothing: a receiver of `setup_logging` stops Celery from configuring logging."""
