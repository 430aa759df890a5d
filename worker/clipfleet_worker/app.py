"""The Celery app of a worker: its settings, each with the reason beside it, and its consumer."""

from __future__ import annotations

from functools import partial

from celery import Celery
from kombu.entity import Queue

from clipfleet import keys
from clipfleet.hints import make_app
from clipfleet_worker.consumer import HintThreads, SurvivingConsumer
from clipfleet_worker.hint_guard import HintGuard
from clipfleet_worker.watchdog import Pulse


def make_worker_app(broker_url: str, *, slots: int, events: bool, pulse: Pulse, guard: HintGuard) -> Celery:
    """The app that consumes hints.

    Args:
        broker_url: Redis or RabbitMQ.
        slots: chunks in progress at a time.
        events: send task events, which Flower needs and nothing else.
        pulse: of the event loop.
        guard: stands before the handlers of messages.
    """
    app = make_app(broker_url)
    app.conf.update(
        worker_pool=HintThreads,  # one process owns the device, the model and the batcher
        worker_concurrency=slots,
        worker_prefetch_multiplier=1,  # holds as many hints as slots, no more
        task_acks_late=True,  # a hint is acked when its chunk has ended
        task_queues=[Queue(keys.QUEUE)],  # type: ignore[no-untyped-call]  # kombu has no types
        task_create_missing_queues=False,  # a typo must fail, not make a queue nobody reads
        broker_connection_retry_on_startup=True,  # start before Redis is up
        broker_connection_max_retries=None,  # the default gives up after 100
        broker_channel_error_retry=True,  # survive READONLY answers of a demoted Redis
        worker_consumer=partial(SurvivingConsumer, pulse=pulse, guard=guard),
        worker_cancel_long_running_tasks_on_connection_loss=False,  # threads cannot be; leases fence
        worker_enable_prefetch_count_reduction=True,
        worker_soft_shutdown_timeout=0,  # in threads it only sleeps; the worker drains by itself
        worker_send_task_events=events,
        task_send_sent_event=events,
        worker_enable_remote_control=events,  # fewer keys and connections where nobody looks
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    )
    return app
