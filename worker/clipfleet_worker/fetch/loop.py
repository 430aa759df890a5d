"""Fetches URLs for many chunks at once, on an event loop in its own thread.

Bytes are passed on in small slices, which wake the decode threads once each. No fetch begins while too many
bytes wait to be decoded; a chunk's deadline is paused meanwhile, since hosts do not cause that delay.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from clipfleet.contract.bottleneck import Meter
from clipfleet.contract.jobs import ErrorCode, ItemError, Lane
from clipfleet.errors import SourceUnavailableError
from clipfleet_worker.failures import ChunkInterrupted, ItemFailure
from clipfleet_worker.fetch.conditions import NOTHING, KnownImage, UnchangedError, inquire
from clipfleet_worker.fetch.http.host_turns import report_waits_to
from clipfleet_worker.fetch.lane_turns import set_lane
from clipfleet_worker.fetch.retrying import ChunkTime, RetryingFetcher
from clipfleet_worker.fetch.waiting_bytes import WaitingBytes
from clipfleet_worker.outcomes import Outcomes
from clipfleet_worker.process.shortages import shortage_behind
from clipfleet_worker.process.watchdog import Pulse

log = logging.getLogger(__name__)

_SLICE_ITEMS = 16
_SLICE_LINGER_SECONDS = 0.05
_CHECK_SECONDS = 0.5
_BEAT_SECONDS = 1.0
_PULSE_LIMIT_SECONDS = 60.0  # nothing may block the event loop

FetchedSlice = list[tuple[int, bytes]]  # (position in the chunk, bytes)


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """The URLs of one chunk, and where their bytes go."""

    uris: list[tuple[int, str]]  # (position in the chunk, URI)
    outcomes: Outcomes
    on_slice: Callable[[FetchedSlice], None]  # called in the loop: must neither block nor raise
    lane: Lane = Lane.NORMAL
    known: Mapping[int, KnownImage] | None = None  # of a job that fills a store, by position


class FetchLoop:
    """One per process. `fetch` returns at once; results arrive through the request."""

    def __init__(
        self,
        fetcher: RetryingFetcher,
        waiting_bytes: WaitingBytes,
        deadline_seconds: float,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        pulse: Pulse | None = None,
    ) -> None:
        self._pulse = pulse or Pulse("fetch loop")
        self._beating: asyncio.Task[None] | None = None
        self._fetcher = fetcher
        self._waiting_bytes = waiting_bytes
        self._deadline_seconds = deadline_seconds
        self._monotonic = monotonic
        self._loop: asyncio.AbstractEventLoop  # from `start` on: none is left open
        self._thread = threading.Thread(target=self._run, name="fetch", daemon=True)

    def start(self) -> None:
        """Start the thread and open the fetcher."""
        self._loop = asyncio.new_event_loop()
        self._thread.start()
        self._call(self._open())

    def stop(self) -> None:
        """Cancel all fetches, close the fetcher, end the thread."""
        if not self._thread.is_alive():
            return
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def fetch(self, request: FetchRequest) -> None:
        """Fetch all URIs of a request; each ends in `on_slice` or as an error in its outcomes."""
        future = asyncio.run_coroutine_threadsafe(self._fetch(request), self._loop)
        future.add_done_callback(partial(_report_end, request.outcomes))

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _call(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _open(self) -> None:
        self._waiting_bytes.bind(asyncio.get_running_loop())
        await self._fetcher.start()
        self._beating = asyncio.create_task(self._beat())

    async def _beat(self) -> None:
        try:
            while True:
                self._pulse.enter("turn", _PULSE_LIMIT_SECONDS)
                await asyncio.sleep(_BEAT_SECONDS)
        finally:
            self._pulse.rest("stopped")

    async def _close(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._fetcher.close()

    async def _fetch(self, request: FetchRequest) -> None:
        set_lane(request.lane)
        report_waits_to(partial(request.outcomes.add_wait, Meter.TURNS))
        slicer = _Slicer(request.on_slice)
        time_left = ChunkTime(self._deadline_seconds)
        tasks = {
            asyncio.create_task(self._fetch_item(request, position, uri, slicer, time_left)): position
            for position, uri in request.uris
        }
        pending = set(tasks)
        try:
            while pending and time_left.seconds > 0 and not request.outcomes.is_interrupted:
                started, was_open = self._monotonic(), self._waiting_bytes.is_open
                done, pending = await asyncio.wait(pending, timeout=_CHECK_SECONDS)
                if was_open:
                    time_left.seconds -= self._monotonic() - started
                _report_bugs(done, request.outcomes)
        finally:
            for task in pending:
                task.cancel()
        slicer.flush()
        if pending:
            await asyncio.gather(*pending, return_exceptions=True)
            detail = f"not fetched within the chunk's {self._deadline_seconds:g} s"
            for task in pending:
                request.outcomes.fail(tasks[task], ItemError(ErrorCode.TIMEOUT, detail))

    async def _fetch_item(
        self, request: FetchRequest, position: int, uri: str, slicer: _Slicer, time_left: ChunkTime
    ) -> None:
        outcomes = request.outcomes
        started = time.monotonic()
        if not self._waiting_bytes.is_open:
            await self._waiting_bytes.wait_open(request.lane)
            opened = time.monotonic()
            outcomes.add_wait(Meter.BEYOND, opened - started)
            started = opened
        try:
            data = await self._ask(request, position, uri, time_left)
        except ItemFailure as failure:
            outcomes.fail(position, failure.error)
            return
        finally:
            outcomes.add_seconds("fetch", time.monotonic() - started)
        if data is None:
            return
        self._waiting_bytes.add(len(data))
        slicer.add(position, data)

    async def _ask(
        self, request: FetchRequest, position: int, uri: str, time_left: ChunkTime
    ) -> bytes | None:
        """Fetch an item. None: its image is the one that the store has, and it has ended."""
        if request.known is None:
            return await self._fetcher.fetch(uri, time_left)
        known = request.known.get(position)
        inquiry = inquire(NOTHING if known is None else known.validators)
        try:
            data = await self._fetcher.fetch(uri, time_left)
        except UnchangedError:
            if known is None:
                raise
            request.outcomes.validators[position] = inquiry.confirmed
            request.outcomes.keep(position, known.content_hash)
            return None
        request.outcomes.validators[position] = inquiry.answer
        return data


class _Slicer:
    """Collects fetched items and passes them on as a slice when it is full, or after a short linger."""

    def __init__(self, on_slice: Callable[[FetchedSlice], None]) -> None:
        self._on_slice = on_slice
        self._items: FetchedSlice = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, position: int, data: bytes) -> None:
        self._items.append((position, data))
        if len(self._items) >= _SLICE_ITEMS:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SLICE_LINGER_SECONDS, self.flush)

    def flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._items:
            items, self._items = self._items, []
            self._on_slice(items)


def _report_bugs(tasks: set[asyncio.Task[None]], outcomes: Outcomes) -> None:
    for task in tasks:
        # The loop has cancelled none of these; the item of a task that was cancelled must still end.
        error = RuntimeError("a fetch was cancelled") if task.cancelled() else task.exception()
        if error is None:
            continue
        if not isinstance(error, SourceUnavailableError) and shortage_behind(error) is None:
            log.error("fetching failed unexpectedly", exc_info=error, extra={"action": "fetch_bug"})
        outcomes.interrupt(error)


def _report_end(outcomes: Outcomes, fetching: Future[None]) -> None:
    """Interrupt a chunk whose fetching broke off: it must not wait forever."""
    if fetching.cancelled():
        outcomes.interrupt(ChunkInterrupted("the worker stops"))
    elif (error := fetching.exception()) is not None:
        log.error("fetching broke off", exc_info=error, extra={"action": "fetch_bug"})
        outcomes.interrupt(error)
