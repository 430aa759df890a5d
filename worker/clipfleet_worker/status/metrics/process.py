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


@dataclass(frozen=True, slots=True)
class WorkerReadings:
    """What is read when somebody asks. Nothing here waits for anything."""

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
    device: str
    device_bytes: Callable[[], Mapping[str, int]]  # by kind
    monotonic: Callable[[], float] = time.monotonic


def _items(readings: WorkerReadings) -> Iterable[Sample]:
    """All of them from the start: what appears with its first count has no rate."""
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
    """One sample where a model is in memory twice in one precision: as the worker's choice, and a job's."""
    return {
        (model.name, model.precision, way.name): value(way)
        for model in readings.models.in_memory()
        if model.certificate
        for way in model.certificate.ways
    }.items()


def _by_loop(readings: WorkerReadings, value: Callable[[float, Phase], float]) -> Iterable[Sample]:
    """The largest value of each loop: some, such as decoding, run many times side by side."""
    now = readings.monotonic()
    found: dict[str, float] = {}
    for phase in readings.health.watchdog.loop_phases():
        found[phase.loop] = max(found.get(phase.loop, 0.0), value(max(0.0, now - phase.since), phase))
    return [((loop,), found[loop]) for loop in sorted(found)]


WORKER_FAMILIES: tuple[Family[WorkerReadings], ...] = (
    Family(
        "clipfleet_items_total",
        "items that have got their row, counted when their chunk is done; `code` is empty for `ok`",
        _items,
        labels=("outcome", "code"),
    ),
    Family(
        "clipfleet_chunks_total",
        "chunks by how they left this process: `done`; `late` (somebody else was first); given back: "
        "`waited` (for store, source, Redis, device memory), `drained`; `lost` (the lease), `cancelled`, "
        "`failed`",
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
        "working time of the chunks that are done, by step, summed over threads",
        lambda r: [
            ((step,), seconds) for step, seconds in r.health.endings.tally.totals().work_seconds.items()
        ],
        labels=("step",),
    ),
    Family("clipfleet_held_chunks", "chunks between claim and end", lambda r: len(r.health.claims.held())),
    Family(
        "clipfleet_oldest_held_seconds",
        "how long the chunk that was claimed first has been held; 0: none is",
        lambda r: r.health.claims.oldest_held_seconds,
    ),
    Family(
        "clipfleet_hanging_chunks",
        "chunks whose step has taken too long: their leases are left to expire",
        lambda r: len(r.health.keeper.hanging()),
    ),
    Family(
        "clipfleet_progress_age_seconds",
        "time since an item or a chunk ended here, or a step began",
        lambda r: r.monotonic() - r.health.keeper.progress.last,
    ),
    Family(
        "clipfleet_open_items",
        "items that count against `clipfleet_open_items_limit`",
        lambda r: r.open_items.count,
    ),
    Family(
        "clipfleet_open_items_limit",
        "`CLIPFLEET_ITEMS_IN_FLIGHT`: no claim while so many are open",
        lambda r: r.open_items.limit,
    ),
    Family(
        "clipfleet_waiting_bytes",
        "bytes that were fetched and are not decoded yet",
        lambda r: r.waiting_bytes.count,
    ),
    Family(
        "clipfleet_waiting_limit_bytes",
        "`CLIPFLEET_BYTES_IN_FLIGHT`: no fetch while so many wait",
        lambda r: r.waiting_bytes.limit,
    ),
    Family(
        "clipfleet_batches_total",
        "batches that went through a model; items by batches by size is how full they are",
        lambda r: r.batcher.totals.batches,
    ),
    Family("clipfleet_batched_items_total", "images and texts in them", lambda r: r.batcher.totals.items),
    Family("clipfleet_batch_size", "items of a full batch", lambda r: r.batcher.batch_size),
    Family(
        "clipfleet_busy_seconds_total",
        "working time of the steps that all chunks share: `decode` (its threads), `encode` (the thread of "
        "the device)",
        lambda r: [((step,), busy.seconds) for step, busy in _busy(r)],
        labels=("step",),
    ),
    Family(
        "clipfleet_capacity_seconds_total",
        "likewise, had they worked all the time: the rates' ratio is the busy share",
        lambda r: [((step,), busy.capacity_seconds) for step, busy in _busy(r)],
        labels=("step",),
    ),
    Family("clipfleet_loaded_models", "models in memory", lambda r: len(r.models.in_memory())),
    Family(
        "clipfleet_model_worst_cosine",
        "the least cosine to fp32 on the CPU of any canary image or text when the model was loaded, by each "
        "way of running a batch",
        lambda r: _by_way(r, lambda way: way.worst_cosine),
        labels=("model", "precision", "way"),
    ),
    Family(
        "clipfleet_model_images_per_second",
        "likewise, the rate of a way; 0: it is not used, or there is one way only",
        lambda r: _by_way(r, lambda way: 0.0 if way.refused else way.per_second),
        labels=("model", "precision", "way"),
    ),
    Family(
        "clipfleet_canary_mismatches_total",
        "how often the GPU has given wrong features of a canary since: graphs are off then",
        lambda r: r.canary_watch.mismatches,
    ),
    Family(
        "clipfleet_cache_requests_total",
        "what was asked of a cache, and whether it was there: `models`, `text_matrices` (of this process), "
        "`shared_text_matrices` (in Redis), `refused_hosts` (names without an address that may be asked; a "
        "miss is a look-up)",
        _caches,
        labels=("cache", "result"),
    ),
    Family(
        "clipfleet_memory_bytes",
        "memory that only this process has, as its memory guard sees it",
        lambda r: r.memory_guard.used_bytes,
    ),
    Family(
        "clipfleet_memory_limit_bytes",
        "`CLIPFLEET_MAX_MEMORY_BYTES`: with more the process ends itself",
        lambda r: r.memory_guard.limit_bytes,
    ),
    Family(
        "clipfleet_device_memory_bytes",
        "of the GPU: `allocated` and `reserved` by this process, `free` and `total` of the device; none on "
        "the CPU",
        lambda r: [((kind,), value) for kind, value in r.device_bytes().items()],
        labels=("kind",),
    ),
    Family(
        "clipfleet_worker_info",
        "always 1; says which version and device this is",
        lambda r: [((clipfleet.__version__, r.device), 1)],
        labels=("version", "device"),
    ),
    Family("clipfleet_ready", "1 while it takes work, as `/readyz` says", lambda r: not r.health.obstacles()),
    Family(
        "clipfleet_drain_seconds",
        "how long it has been leaving; 0: it does not",
        lambda r: r.drain.for_seconds,
    ),
    Family(
        "clipfleet_drain_limit_seconds",
        "`CLIPFLEET_DRAIN_SECONDS`: by then it is gone",
        lambda r: r.drain_seconds,
    ),
    Family("clipfleet_redis_up", "1 while the ledger's Redis answers", lambda r: r.reconciler.redis.is_ok),
    Family(
        "clipfleet_redis_state_seconds",
        "how long it has answered, or has not",
        lambda r: r.reconciler.redis.for_seconds,
    ),
    Family(
        "clipfleet_loop_phase_seconds",
        "how long a loop has been at what it does; 0 while it waits for work or for the world",
        lambda r: _by_loop(r, lambda seconds, phase: 0.0 if phase.is_idle else seconds),
        labels=("loop",),
    ),
    Family(
        "clipfleet_loop_limit_ratio",
        "likewise, as a share of what it may take: at 1 the watchdog ends the process",
        lambda r: _by_loop(r, lambda seconds, phase: seconds / (phase.limit_seconds or math.inf)),
        labels=("loop",),
    ),
    Family(
        "clipfleet_expired_leases_total",
        "leases of any worker that had run out and were taken back by this one",
        lambda r: r.reconciler.expired_leases,
    ),
    Family(
        "clipfleet_refused_hints_total",
        "messages on the queue that were no hints, by what was wrong with them",
        lambda r: [((reason,), count) for reason, count in r.health.hints_refused().items()],
        labels=("reason",),
    ),
)
