"""Metrics of one worker process: aggregate them with `sum`, or `max` for ages and ratios."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import clipfleet
from clipfleet.contract.jobs import ErrorCode
from clipfleet.contract.parts import ItemStatus
from clipfleet_worker.chunk.meter import StepsBusy
from clipfleet_worker.chunk.open_items import OpenItems
from clipfleet_worker.chunk.tally import CHUNK_SECONDS, ChunkEnd
from clipfleet_worker.encode.backends.certificate import Way
from clipfleet_worker.encode.batcher import Batcher
from clipfleet_worker.fetch.waiting_bytes import WaitingBytes
from clipfleet_worker.models.cache import Models
from clipfleet_worker.models.canary_watch import CanaryWatch
from clipfleet_worker.process.counts import Busy, CacheCounts
from clipfleet_worker.process.drain import Drain
from clipfleet_worker.process.memory_guard import MemoryGuard
from clipfleet_worker.process.reconciler import Reconciler
from clipfleet_worker.process.watchdog import Phase
from clipfleet_worker.status.health import Health
from clipfleet_worker.status.metrics import Buckets, Family, Sample
from clipfleet_worker.webhooks.courier import Outcome


@dataclass(frozen=True, slots=True)
class WorkerReadings:
    """What the metrics read. Nothing here blocks."""

    health: Health
    open_items: OpenItems
    waiting_bytes: WaitingBytes
    batcher: Batcher
    steps_busy: Callable[[], StepsBusy]
    models: Models
    canary_watch: CanaryWatch
    caches: Mapping[str, CacheCounts]  # by name
    reconciler: Reconciler
    drain: Drain
    drain_seconds: float
    memory_guard: MemoryGuard
    webhook_outcomes: Mapping[Outcome, int]
    device: str
    device_bytes: Callable[[], Mapping[str, int]]  # by kind
    monotonic: Callable[[], float] = time.monotonic


def _items(readings: WorkerReadings) -> Iterable[Sample]:
    """All codes from the start: a series that begins with its first count has no rate."""
    items = readings.health.endings.tally.totals().items
    yield (ItemStatus.OK, ""), items.get((ItemStatus.OK, ""), 0)
    for code in ErrorCode:
        yield (ItemStatus.FAILED, code), items.get((ItemStatus.FAILED, code), 0)


def _chunks(readings: WorkerReadings) -> Iterable[Sample]:
    ends = readings.health.endings.tally.totals().ends
    return [((end,), ends.get(end, 0)) for end in ChunkEnd]


def _chunk_seconds(readings: WorkerReadings) -> Iterable[Sample]:
    totals = readings.health.endings.tally.totals()
    yield (), Buckets(CHUNK_SECONDS, totals.lived, totals.lived_seconds)


def _busy(readings: WorkerReadings) -> Iterable[tuple[str, Busy]]:
    found = readings.steps_busy()
    return [("decode", found.decode), ("encode", found.forward)]


def _caches(readings: WorkerReadings) -> Iterable[Sample]:
    for name, counts in readings.caches.items():
        yield (name, "hit"), counts.hits
        yield (name, "miss"), counts.misses


def _by_way(readings: WorkerReadings, value: Callable[[Way], float]) -> Iterable[Sample]:
    """One sample per model and precision, also if it is loaded twice: by default and by name."""
    return {
        (model.name, model.precision, way.name): value(way)
        for model in readings.models.in_memory()
        if model.certificate
        for way in model.certificate.ways
    }.items()


def _by_loop(readings: WorkerReadings, value: Callable[[float, Phase], float]) -> Iterable[Sample]:
    """The highest value of each loop: some, such as decoding, run in many threads."""
    now = readings.monotonic()
    found: dict[str, float] = {}
    for phase in readings.health.watchdog.loop_phases():
        found[phase.loop] = max(found.get(phase.loop, 0.0), value(max(0.0, now - phase.since), phase))
    return [((loop,), found[loop]) for loop in sorted(found)]


WORKER_FAMILIES: tuple[Family[WorkerReadings], ...] = (
    Family(
        "clipfleet_items_total",
        "items with a row, counted when their chunk is complete; `code` is empty for `ok`",
        _items,
        labels=("outcome", "code"),
    ),
    Family(
        "clipfleet_chunks_total",
        "chunks by how they ended here: `done`; `late` (another worker was first); released: `waited` (for "
        "store, source, Redis or device memory), `drained`; `lost` (its lease), `cancelled`, `failed`",
        _chunks,
        labels=("end",),
    ),
    Family(
        "clipfleet_chunk_seconds",
        "time of a chunk from its claim to its end",
        _chunk_seconds,
        is_histogram=True,
    ),
    Family(
        "clipfleet_work_seconds_total",
        "working time of complete chunks by step, summed over threads",
        lambda r: [
            ((step,), seconds) for step, seconds in r.health.endings.tally.totals().work_seconds.items()
        ],
        labels=("step",),
    ),
    Family("clipfleet_held_chunks", "chunks between claim and end", lambda r: len(r.health.claims.held())),
    Family(
        "clipfleet_oldest_held_seconds",
        "age of the oldest held chunk; 0: none is held",
        lambda r: r.health.claims.oldest_held_seconds,
    ),
    Family(
        "clipfleet_hanging_chunks",
        "chunks whose step is over its limit: their leases are not renewed",
        lambda r: len(r.health.keeper.hanging()),
    ),
    Family(
        "clipfleet_progress_age_seconds",
        "time since an item or a chunk ended here, or a step began",
        lambda r: r.monotonic() - r.health.keeper.progress.last,
    ),
    Family(
        "clipfleet_open_items",
        "items that count towards `clipfleet_open_items_limit`",
        lambda r: r.open_items.count,
    ),
    Family(
        "clipfleet_open_items_limit",
        "`CLIPFLEET_ITEMS_IN_FLIGHT`: no claim while this many are open",
        lambda r: r.open_items.limit,
    ),
    Family(
        "clipfleet_waiting_bytes",
        "fetched bytes that are not decoded yet",
        lambda r: r.waiting_bytes.count,
    ),
    Family(
        "clipfleet_waiting_limit_bytes",
        "`CLIPFLEET_BYTES_IN_FLIGHT`: no fetch while this many wait",
        lambda r: r.waiting_bytes.limit,
    ),
    Family(
        "clipfleet_batches_total",
        "batches that a model has run; items / batches / batch size is how full they are",
        lambda r: r.batcher.totals.batches,
    ),
    Family("clipfleet_batched_items_total", "images and texts in them", lambda r: r.batcher.totals.items),
    Family("clipfleet_batch_size", "items in a full batch", lambda r: r.batcher.batch_size),
    Family(
        "clipfleet_busy_seconds_total",
        "working time of the steps that all chunks share: `decode` (all threads), `encode` (device thread)",
        lambda r: [((step,), busy.seconds) for step, busy in _busy(r)],
        labels=("step",),
    ),
    Family(
        "clipfleet_capacity_seconds_total",
        "the most that these steps could have worked: the ratio of the two rates is how busy they are",
        lambda r: [((step,), busy.capacity_seconds) for step, busy in _busy(r)],
        labels=("step",),
    ),
    Family("clipfleet_loaded_models", "models in memory", lambda r: len(r.models.in_memory())),
    Family(
        "clipfleet_model_worst_cosine",
        "lowest cosine to fp32 on the CPU of any canary image or text, when the model was loaded, by "
        "each way of running a batch",
        lambda r: _by_way(r, lambda way: way.worst_cosine),
        labels=("model", "precision", "way"),
    ),
    Family(
        "clipfleet_model_images_per_second",
        "measured rate of a way; 0: it is not used, or there is only one way",
        lambda r: _by_way(r, lambda way: 0.0 if way.refused else way.per_second),
        labels=("model", "precision", "way"),
    ),
    Family(
        "clipfleet_canary_mismatches_total",
        "wrong features of a canary from the GPU since the load: CUDA graphs are off after the first",
        lambda r: r.canary_watch.mismatches,
    ),
    Family(
        "clipfleet_cache_requests_total",
        "hits and misses of a cache: `models`, `text_matrices` (of this process), `shared_text_matrices` (in "
        "Redis), `refused_hosts` (names without an allowed address; a miss is a look-up)",
        _caches,
        labels=("cache", "result"),
    ),
    Family(
        "clipfleet_memory_bytes",
        "private memory of this process, as its memory guard measures it",
        lambda r: r.memory_guard.used_bytes,
    ),
    Family(
        "clipfleet_memory_limit_bytes",
        "`CLIPFLEET_MAX_MEMORY_BYTES`: above it the process ends itself",
        lambda r: r.memory_guard.limit_bytes,
    ),
    Family(
        "clipfleet_device_memory_bytes",
        "memory of the GPU: `allocated` and `reserved` by this process, `free` and `total` of the device; no "
        "samples on the CPU",
        lambda r: [((kind,), value) for kind, value in r.device_bytes().items()],
        labels=("kind",),
    ),
    Family(
        "clipfleet_worker_info",
        "always 1; version and device are in the labels",
        lambda r: [((clipfleet.__version__, r.device), 1)],
        labels=("version", "device"),
    ),
    Family(
        "clipfleet_ready",
        "1 while it claims chunks, as `/readyz` reports",
        lambda r: not r.health.obstacles(),
    ),
    Family(
        "clipfleet_drain_seconds",
        "how long the worker has been draining; 0: it is not",
        lambda r: r.drain.for_seconds,
    ),
    Family(
        "clipfleet_drain_limit_seconds",
        "`CLIPFLEET_DRAIN_SECONDS`: a drain ends within this time",
        lambda r: r.drain_seconds,
    ),
    Family("clipfleet_redis_up", "1 while the ledger's Redis answers", lambda r: r.reconciler.redis.is_ok),
    Family(
        "clipfleet_redis_state_seconds",
        "how long Redis has answered, or not answered",
        lambda r: r.reconciler.redis.for_seconds,
    ),
    Family(
        "clipfleet_loop_phase_seconds",
        "how long a loop has been in its phase; 0 while it waits for work or for another service",
        lambda r: _by_loop(r, lambda seconds, phase: 0.0 if phase.is_idle else seconds),
        labels=("loop",),
    ),
    Family(
        "clipfleet_loop_limit_ratio",
        "the same as a share of the limit of the phase: at 1 the watchdog ends the process",
        lambda r: _by_loop(r, lambda seconds, phase: seconds / (phase.limit_seconds or math.inf)),
        labels=("loop",),
    ),
    Family(
        "clipfleet_expired_leases_total",
        "expired leases, of any worker, that this one has reconciled",
        lambda r: r.reconciler.expired_leases,
    ),
    Family(
        "clipfleet_refused_hints_total",
        "dropped messages of the queue that were not hints, by what was wrong",
        lambda r: [((reason,), count) for reason, count in r.health.hints_refused().items()],
        labels=("reason",),
    ),
    Family(
        "clipfleet_webhook_attempts_total",
        "requests with webhook events by how they ended: `delivered`, `retried` (there will be another one), "
        "`failed` (it was the last)",
        lambda r: [((outcome,), r.webhook_outcomes.get(outcome, 0)) for outcome in Outcome],
        labels=("outcome",),
    ),
)
