"""The composition root: builds a worker from its settings, starts it, and stops it in order.

Nothing here knows how a chunk is processed.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from celery import Celery, signals

from clipfleet.contract.jobs import Precision
from clipfleet.errors import RedisUnavailableError
from clipfleet.hints import MAX_HINTS, Hints
from clipfleet.ledger.errands import Errands
from clipfleet.ledger.events.outbox import Outbox
from clipfleet.ledger.jobs import Ledger, WorkerFacts
from clipfleet.ledger.locks import Locks
from clipfleet.ledger.row_store import RedisStore
from clipfleet.tracing import tracing_of
from clipfleet_worker.assembly.decode import make_memory_guard
from clipfleet_worker.assembly.device import make_device_set_up
from clipfleet_worker.assembly.items import ItemSteps
from clipfleet_worker.assembly.models import Load, ModelLoader
from clipfleet_worker.assembly.webhooks import make_courier
from clipfleet_worker.chunk.claims import Claims
from clipfleet_worker.chunk.endings import Endings
from clipfleet_worker.chunk.job_contexts import JobContexts
from clipfleet_worker.chunk.leases import LeaseKeeper
from clipfleet_worker.chunk.open_items import OpenItems
from clipfleet_worker.chunk.pipeline import Pipeline
from clipfleet_worker.chunk.relabelling import Relabelling
from clipfleet_worker.decode.decoder import Decoder
from clipfleet_worker.encode.batcher import Batcher
from clipfleet_worker.finish.committing import StoreCommits
from clipfleet_worker.finish.errands import Announcer, Sweeper
from clipfleet_worker.finish.finisher import Finisher
from clipfleet_worker.hints.consumer import make_worker_app, run_worker
from clipfleet_worker.hints.guard import HintGuard
from clipfleet_worker.hints.puller import Puller
from clipfleet_worker.hints.tasks import Tasks, register
from clipfleet_worker.models.cache import Models
from clipfleet_worker.models.canary_watch import CanaryWatch
from clipfleet_worker.models.catalogue import require_known
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.models.loader import load_model
from clipfleet_worker.process.device import device_bytes
from clipfleet_worker.process.drain import Drain
from clipfleet_worker.process.reconciler import Reconciler
from clipfleet_worker.process.start import calm_collector, raise_open_files_limit
from clipfleet_worker.process.watchdog import EXIT_HUNG, Watchdog
from clipfleet_worker.score.head_cache import HeadCache
from clipfleet_worker.score.scoring_threads import ScoringThreads
from clipfleet_worker.score.text_matrices import TextMatrices
from clipfleet_worker.settings import WorkerSettings
from clipfleet_worker.status.health import Health, health_pages
from clipfleet_worker.status.metrics import FamiliesCollector, metrics_page
from clipfleet_worker.status.metrics.ledger import LEDGER_FAMILIES
from clipfleet_worker.status.metrics.process import WORKER_FAMILIES, WorkerReadings
from clipfleet_worker.status.server import StatusServer
from clipfleet_worker.stores import has_store_extra
from clipfleet_worker.stores.equal_images import EqualImagesCache

log = logging.getLogger(__name__)


class Worker:
    """One worker process, see `Drainable`: Celery's pool of slots in front, the shared steps behind."""

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        preload: bool,
        decoder_class: type[Decoder] = Decoder,
        load_model: Load = load_model,
        watchdog: Watchdog | None = None,
    ) -> None:
        self._settings = settings
        self._preload = preload
        self._started = time.monotonic()
        self._preloading: Future[LoadedModel] | None = None
        self._worker_id = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._device = make_device_set_up(settings)
        self._watchdog = watchdog or Watchdog()
        self._tracing = tracing_of("clipfleet-worker")
        self._memory_guard = make_memory_guard(settings)
        self._hint_guard = HintGuard()
        self._celery_app = self._make_celery_app()
        self._ledger = Ledger(settings.require_redis_url())
        self._store = RedisStore(settings.require_redis_url())
        self._locks = Locks(settings.require_redis_url())
        self._outbox = Outbox(settings.require_redis_url())
        self._courier = make_courier(settings, self._outbox, self._watchdog)
        self._hints = Hints(self._celery_app, settings.require_broker_url())
        self._open_items = OpenItems(settings.items_in_flight)
        self._keeper = self._make_keeper()
        self._batcher = Batcher(
            self._device.batch_size,
            least_batch=self._device.least_batch,
            pulse=self._watchdog.pulse("batcher"),
        )
        self._models = Models(
            settings.models,
            ModelLoader(load_model, self._device, self._batcher, self._watchdog),
            kept=settings.loaded_models,
            default_precision=settings.precision,
            on_change=lambda: self._canary_watch.request(),
        )
        self._canary_watch = CanaryWatch(self._models, self._batcher)
        self._text_matrices = TextMatrices(self._batcher, settings.require_redis_url())
        self._items = ItemSteps(settings, self._batcher, decoder_class, self._watchdog, self._memory_guard)
        self._endings = self._make_endings()
        self._claims = self._make_claims()
        self._tasks = self._make_tasks()
        self._reconciler = self._make_reconciler()
        self._puller = Puller(
            self._tasks, self._claims, self._watchdog.pulse("puller"), settings.drain_seconds
        )
        self._has_started = False
        self._drain = Drain(self, settings.drain_seconds, pulse=self._watchdog.pulse("drain"))
        self._status_server = self._make_status_server()

    def _make_celery_app(self) -> Celery:
        return make_worker_app(
            self._settings.require_broker_url(),
            slots=self._settings.slots,
            events=self._settings.celery_events,
            pulse=self._watchdog.pulse("hints"),
            guard=self._hint_guard,
        )

    def _make_keeper(self) -> LeaseKeeper:
        keeper = LeaseKeeper(
            self._ledger,
            self._settings.lease_seconds,
            self._settings.write_limit_seconds,
            pulse=self._watchdog.pulse("lease keeper"),
            running_time=self._watchdog.running_time,
        )
        self._watchdog.watch(keeper.phases)
        return keeper

    def _make_reconciler(self) -> Reconciler:
        return Reconciler(
            self._ledger,
            self._facts,
            period_seconds=self._settings.reconcile_seconds,
            lease_seconds=self._settings.lease_seconds,
            on_workers=self._items.http.turns.share,
            on_lost=lambda lost: self._hints.publish_work(min(lost, MAX_HINTS)),
            counts_backlog=self._settings.health_port is not None,
            pulse=self._watchdog.pulse("reconciler"),
        )

    def _make_status_server(self) -> StatusServer | None:
        if self._settings.health_port is None:
            return None
        health = Health(
            worker_id=self._worker_id,
            watchdog=self._watchdog,
            keeper=self._keeper,
            claims=self._claims,
            endings=self._endings,
            redis=self._reconciler.redis,
            has_started=self._is_started,
            is_draining=lambda: self._drain.has_begun,
            hints_refused=lambda: self._hint_guard.refused,
            monotonic=self._watchdog.running_time,
        )
        readings = self._readings(health)
        metrics = metrics_page(
            FamiliesCollector(WORKER_FAMILIES, lambda: readings),
            FamiliesCollector(LEDGER_FAMILIES, lambda: self._reconciler.backlog),
        )
        pages = {**health_pages(health), "/metrics": metrics}
        return StatusServer(self._settings.health_host, self._settings.health_port, pages)

    def _readings(self, health: Health) -> WorkerReadings:
        return WorkerReadings(
            health=health,
            open_items=self._open_items,
            waiting_bytes=self._items.waiting_bytes,
            batcher=self._batcher,
            steps_busy=self._items.path.busy,
            models=self._models,
            canary_watch=self._canary_watch,
            caches={
                "models": self._models.requests,
                "text_matrices": self._text_matrices.requests,
                "shared_text_matrices": self._text_matrices.shared_requests,
                "refused_hosts": self._items.http.refused_hosts,
            },
            reconciler=self._reconciler,
            drain=self._drain,
            drain_seconds=self._settings.drain_seconds,
            memory_guard=self._memory_guard,
            webhook_outcomes=self._courier.outcomes,
            device=self._device.name,
            device_bytes=partial(device_bytes, self._device.name),
            monotonic=self._watchdog.running_time,
        )

    def _is_started(self) -> bool:
        """Whether it takes work, and the model to preload is loaded."""
        return self._has_started and (self._preloading is None or self._preloading.done())

    def _make_endings(self) -> Endings:
        return Endings(
            ledger=self._ledger,
            models=self._models,
            worker_id=self._worker_id,
            outage_seconds=self._settings.outage_hours * 3600,
            job_ttl_seconds=self._settings.job_ttl_seconds,
        )

    def _make_claims(self) -> Claims:
        return Claims(
            ledger=self._ledger,
            open_items=self._open_items,
            models=self._models,
            shunned_jobs=self._endings.shunned_jobs,
            lease_seconds=self._settings.lease_seconds,
            slots=self._settings.slots,
        )

    def _make_tasks(self) -> Tasks:
        contexts = JobContexts(
            self._ledger,
            self._store,
            tuple(Path(root) for root in self._settings.output_roots),
            self._settings.s3_buckets,
            tuple(Path(root) for root in self._settings.file_roots),
        )
        self._errands = Errands(self._settings.require_redis_url())
        self._announcer = Announcer(self._errands, self._celery_app, self._watchdog.pulse("announcer"))
        self._sweeper = Sweeper(self._errands, contexts)
        finisher = Finisher(
            self._ledger,
            self._settings.job_ttl_seconds,
            StoreCommits(self._ledger, self._locks),
        )
        return Tasks(
            ledger=self._ledger,
            claims=self._claims,
            endings=self._endings,
            contexts=contexts,
            keeper=self._keeper,
            pipeline=self._make_pipeline(),
            finisher=finisher,
            hints=self._hints,
            lease_seconds=self._settings.lease_seconds,
            tracing=self._tracing,
            on_events=self._courier.wake,
        )

    def _make_pipeline(self) -> Pipeline:
        heads = HeadCache()
        return Pipeline(
            models=self._models,
            item_path=self._items.path,
            text_matrices=self._text_matrices,
            heads=heads,
            relabelling=Relabelling(
                models=self._models,
                batcher=self._batcher,
                scoring_threads=ScoringThreads(),
                text_matrices=self._text_matrices,
                heads=heads,
            ),
            open_items=self._open_items,
            fetch_deadline_seconds=self._settings.chunk_deadline_seconds,
            decode_seconds=self._settings.decode_seconds,
            ledger=self._ledger,
            equal_images=EqualImagesCache(),
        )

    def run(self) -> int:
        """Work until SIGTERM or SIGINT; returns the exit code.

        Raises:
            UsageError: there is no model of one of the names.
        """
        require_known(self._settings.models)
        raise_open_files_limit(connections=self._settings.total_connections)
        threading.excepthook = _exit_when_a_thread_dies
        calm_collector()
        register(self._celery_app, self._tasks)
        signals.worker_shutting_down.connect(self._on_shutting_down)
        signals.worker_ready.connect(self._on_ready)
        if self._preload:
            self._preloading = self._models.prefetch(self._settings.models[0], Precision.AUTO)
        self._watchdog.start()
        self._drain.start()
        if self._status_server is not None:
            self._status_server.start()
        self._memory_guard.start()
        self._batcher.start()
        if self._device.name != "cpu":
            self._canary_watch.start()
        self._items.start()
        self._keeper.start()
        self._announcer.start()
        self._sweeper.start()
        self._courier.start()
        self._reconciler.start()
        self._puller.start()
        try:
            return run_worker(self._celery_app, f"clipfleet@{self._worker_id}")
        finally:
            self._stop()

    def _on_ready(self, **_: object) -> None:
        self._reconciler.heartbeat()
        self._has_started = True
        log.info(
            "worker %s is ready: models %s on %s",
            self._worker_id,
            ", ".join(self._models.served()),
            self._device.name,
            extra={"action": "worker_ready"},
        )
        if self._settings.ready_file is not None:
            self._settings.ready_file.touch()

    def _on_shutting_down(self, **_: object) -> None:
        self._drain.begin()

    def stop_claiming(self) -> None:
        self._claims.drain()
        self._endings.drain()
        self._reconciler.request_stop()
        self._puller.request_stop()

    def interrupt(self, reason: str) -> None:
        self._keeper.interrupt_all(reason)
        self._courier.request_stop()

    def release_all(self, reason: str) -> bool:
        return self._endings.release_all(self._claims.held(), reason) and self._say_farewell()

    def _stop(self) -> None:
        self._drain.begin()  # Celery may have ended by itself
        self.stop_claiming()
        self._reconciler.stop()
        self._puller.stop()
        self._announcer.stop()
        self._sweeper.stop()
        self._errands.close()
        self._courier.stop()
        self._outbox.close()
        self._keeper.stop()
        self._items.stop_fetching()
        self._batcher.stop()
        self._canary_watch.stop()
        self._items.stop_decoding()
        self._memory_guard.stop()
        self._say_farewell()
        self._hints.close()
        self._store.close()
        self._locks.close()
        self._text_matrices.close()
        self._ledger.close()
        self._tracing.close()
        if self._status_server is not None:
            self._status_server.stop()
        self._drain.end()

    def _facts(self) -> WorkerFacts:
        return WorkerFacts(
            worker_id=self._worker_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            models=self._models.served(),
            device=self._device.name,
            held_chunks=len(self._claims.held()),
            up_seconds=round(time.monotonic() - self._started, 1),
            refused_jobs=self._endings.refused_jobs,
            fills_stores=has_store_extra(),
        )

    def _say_farewell(self) -> bool:
        try:
            self._ledger.farewell(self._worker_id)
        except RedisUnavailableError as error:
            log.warning("farewell not recorded: %s", error, extra={"action": "farewell_failed"})
            return False
        return True


def _exit_when_a_thread_dies(arguments: threading.ExceptHookArgs) -> None:
    """End the process: without its batcher or fetch loop a worker looks alive and does nothing."""
    log.critical(
        "thread %s died; the process ends, its leases expire",
        arguments.thread.name if arguments.thread else "?",
        exc_info=arguments.exc_value,
        extra={"action": "thread_died"},
    )
    logging.shutdown()
    os._exit(EXIT_HUNG)
