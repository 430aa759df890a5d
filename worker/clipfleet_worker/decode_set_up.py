"""What a worker's settings mean for decoding: limits, who watches over them, how much goes on at a time."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from clipfleet_worker.cores import decode_threads
from clipfleet_worker.decode import Decoder
from clipfleet_worker.decode_children import DecodeChildren, DecodeLimits
from clipfleet_worker.decode_stage import DecodeStage
from clipfleet_worker.memory_guard import MemoryGuard, Reading, memory_limit, own_memory
from clipfleet_worker.settings import WorkerSettings
from clipfleet_worker.watchdog import Pulse, Watchdog

_MODEL_BYTES = 1 << 31


def make_memory_guard(settings: WorkerSettings) -> MemoryGuard:
    """Who ends the process before it has too much memory.

    While a picture is read, others may arrive or be read too, and a model may be loaded.
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


def make_decode_stage(
    settings: WorkerSettings, decoder_class: type[Decoder], watchdog: Watchdog, memory_guard: MemoryGuard
) -> DecodeStage:
    """Where pictures are read, in sight of those who end a process that hangs or takes too much."""
    decoder = decoder_class(settings.max_pixels, settings.max_decode_bytes)
    limits = DecodeLimits(settings.decode_seconds, settings.decode_memory)
    watch = PictureWatch(watchdog, memory_guard, limits.seconds)
    children = DecodeChildren(decoder, limits)
    return DecodeStage(decoder, children, watched=watch.of_this_thread, isolate=settings.isolate_decode)


class PictureWatch:
    """Shows watchdog and memory guard each picture that is read in this process."""

    def __init__(self, watchdog: Watchdog, memory_guard: MemoryGuard, limit_seconds: float) -> None:
        self._watchdog = watchdog
        self._memory_guard = memory_guard
        self._limit_seconds = limit_seconds
        self._thread = threading.local()

    def of_this_thread(self) -> WatchedPictures:
        """The context to be entered around each picture. Made once a thread: they read millions."""
        try:
            pictures: WatchedPictures = self._thread.pictures
        except AttributeError:
            pictures = self._thread.pictures = WatchedPictures(
                self._watchdog.pulse("decode"), self._memory_guard.new_reading(), self._limit_seconds
            )
        return pictures


@dataclass(frozen=True, slots=True)
class WatchedPictures:
    """The pictures of one thread, one after the other."""

    pulse: Pulse
    reading: Reading
    limit_seconds: float

    def __enter__(self) -> None:
        self.pulse.enter("read a picture", self.limit_seconds)
        self.reading.__enter__()

    def __exit__(self, *_: object) -> None:
        self.reading.__exit__()
        self.pulse.rest()
