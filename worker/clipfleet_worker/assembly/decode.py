"""Builds the decode step from the settings, and what watches it."""

from __future__ import annotations

import threading

from clipfleet_worker.decode.child_process import DecodeLimits
from clipfleet_worker.decode.children import DecodeChildren
from clipfleet_worker.decode.decoder import Decoder
from clipfleet_worker.decode.step import DecodeStep
from clipfleet_worker.process.cores import decode_threads
from clipfleet_worker.process.memory_guard import MemoryGuard, memory_limit, own_memory
from clipfleet_worker.process.watchdog import Watchdog
from clipfleet_worker.settings import WorkerSettings

_MODEL_BYTES = 1 << 31


def make_memory_guard(settings: WorkerSettings) -> MemoryGuard:
    """Make the memory guard.

    While an image is read, others may be fetched and read, and a model may be loaded.
    """
    others = (
        settings.bytes_in_flight
        + decode_threads(settings.decode_threads) * settings.max_decode_bytes
        + _MODEL_BYTES
    )
    return MemoryGuard(
        memory_limit(settings.max_memory_bytes),
        growth_bytes=settings.decode_memory + others,
        used_bytes=own_memory,
    )


def make_decode_step(
    settings: WorkerSettings, decoder_class: type[Decoder], watchdog: Watchdog, memory_guard: MemoryGuard
) -> DecodeStep:
    """Make the decode step, watched by the watchdog and the memory guard."""
    decoder = decoder_class(settings.max_pixels, settings.max_decode_bytes)
    limits = DecodeLimits(settings.decode_seconds, settings.decode_memory)
    watched = WatchedImages(watchdog, memory_guard, limits.seconds)
    children = DecodeChildren(decoder, limits)
    return DecodeStep(decoder, children, watched=watched, isolate=settings.isolate_decode)


class WatchedImages(threading.local):
    """A context around each image that is read in this process, for watchdog and memory guard.

    Thread-local and reusable, since threads read millions of images.
    """

    def __init__(self, watchdog: Watchdog, memory_guard: MemoryGuard, limit_seconds: float) -> None:
        self._pulse = watchdog.pulse("decode")
        self._reading = memory_guard.new_reading()
        self._limit_seconds = limit_seconds

    def __enter__(self) -> None:
        self._pulse.enter("read an image", self._limit_seconds)
        self._reading.__enter__()

    def __exit__(self, *_: object) -> None:
        self._reading.__exit__()
        self._pulse.rest()
