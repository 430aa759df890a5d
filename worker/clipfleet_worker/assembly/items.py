"""Builds the steps that items go through in all chunks: fetching, decoding, and the path between them."""

from __future__ import annotations

from clipfleet_worker.assembly.decode import make_decode_step
from clipfleet_worker.assembly.fetch import make_fetch_loop, make_http_fetcher, make_routes
from clipfleet_worker.chunk.item_path import ItemPath
from clipfleet_worker.chunk.lane_pool import LanePool
from clipfleet_worker.decode.decoder import Decoder
from clipfleet_worker.decode.lock import DecodeLock
from clipfleet_worker.encode.batcher import Batcher
from clipfleet_worker.fetch.waiting_bytes import WaitingBytes
from clipfleet_worker.process.cores import decode_threads
from clipfleet_worker.process.counts import BusyMeter
from clipfleet_worker.process.memory_guard import MemoryGuard
from clipfleet_worker.process.watchdog import Watchdog
from clipfleet_worker.settings import WorkerSettings


class ItemSteps:
    """The item path of a worker, with what it starts and stops."""

    def __init__(
        self,
        settings: WorkerSettings,
        batcher: Batcher,
        decoder_class: type[Decoder],
        watchdog: Watchdog,
        memory_guard: MemoryGuard,
    ) -> None:
        threads = decode_threads(settings.decode_threads)
        self._decode_pool = LanePool(threads, name="decode")
        self._decode_step = make_decode_step(settings, decoder_class, watchdog, memory_guard)
        self.waiting_bytes = WaitingBytes(settings.bytes_in_flight)
        self.http = make_http_fetcher(settings)
        routes = make_routes(settings, self.http)
        self._fetch_loop = make_fetch_loop(settings, routes, self.waiting_bytes, watchdog)
        self.path = ItemPath(
            routes=routes,
            fetch_loop=self._fetch_loop,
            waiting_bytes=self.waiting_bytes,
            decode_step=self._decode_step,
            decode_pool=self._decode_pool,
            decode_threads=threads,
            decode_busy=BusyMeter(threads),
            decode_lock=DecodeLock(),
            batcher=batcher,
            max_image_bytes=settings.max_image_bytes,
        )

    def start(self) -> None:
        """Start the fetch loop; the other threads start with their first work."""
        self._fetch_loop.start()

    def stop_fetching(self) -> None:
        """Fetch nothing more."""
        self._fetch_loop.stop()

    def stop_decoding(self) -> None:
        """Decode nothing more."""
        self._decode_step.close()
        self._decode_pool.stop()
