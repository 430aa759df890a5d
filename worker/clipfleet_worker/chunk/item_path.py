"""The path of items from URI to features, in slices: fetch, decode, submit to the batcher.

The event loop fetches remote items. Decode threads read local items, and those staged with their bytes.
Failures of items end in the outcomes of the chunk; bugs interrupt the chunk.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, TypeVar

import numpy as np
import pyarrow as pa

from clipfleet.contract.bottleneck import Meter
from clipfleet.contract.jobs import DecodeRoute, ErrorCode, Exif, ItemError, Job, Lane
from clipfleet.contract.parts import INLINE_COLUMN
from clipfleet_worker.chunk.lane_pool import LanePool
from clipfleet_worker.chunk.meter import StepsBusy
from clipfleet_worker.decode.lock import DecodeLock, Hold
from clipfleet_worker.decode.step import DecodeStep
from clipfleet_worker.encode.batcher import Batcher
from clipfleet_worker.encode.batches import ItemSlice
from clipfleet_worker.failures import ItemFailure, too_many_bytes
from clipfleet_worker.fetch.loop import FetchedSlice, FetchLoop, FetchRequest
from clipfleet_worker.fetch.routes import Routes
from clipfleet_worker.fetch.waiting_bytes import WaitingBytes
from clipfleet_worker.models.loading import Ahead, Loading
from clipfleet_worker.outcomes import Outcomes
from clipfleet_worker.pixel_spec import PixelSpec
from clipfleet_worker.process.counts import BusyMeter
from clipfleet_worker.process.shortages import shortage_behind
from clipfleet_worker.stores.stored_images import StoredImages

T = TypeVar("T")
Source: TypeAlias = str | pa.BinaryScalar  # of a local item: its URI or its staged bytes
# Items that go through a thread at a time. A hand-over costs as much as a small image without its decoding;
# but in a chunk with few items, more slices keep more threads busy.
_ITEMS_PER_SLICE = 32
_ITEMS_PER_SMALL_SLICE = 16
_TEXTS_PER_SLICE = 64
# Local files are read before they are decoded: one kind of work at a time keeps the CPU's caches warm.
# But the files of one slice may be a gigabyte, in each thread.
_BYTES_READ_AHEAD = 256 << 10
_SHOWN_ID = 60  # characters of an item's id in a message


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the items of one chunk go."""

    loading: Loading
    ahead: Ahead  # holds what is ready before the model
    pixel_spec: PixelSpec  # of the model
    decode: DecodeRoute
    exif: Exif
    lane: Lane
    outcomes: Outcomes
    is_suspect: bool = False  # the chunk may have killed a worker
    stored: StoredImages | None = None  # of a job that fills a store


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemPath:
    """Shared by all chunks of a process."""

    routes: Routes
    fetch_loop: FetchLoop
    waiting_bytes: WaitingBytes
    decode_step: DecodeStep
    decode_pool: LanePool
    decode_threads: int
    decode_lock: DecodeLock
    decode_busy: BusyMeter  # of these threads
    batcher: Batcher
    max_image_bytes: int

    def busy(self) -> StepsBusy:
        """Read how busy the shared steps are."""
        return StepsBusy(self.decode_busy.read(), self.batcher.busy.read())

    def handling(self, *, is_suspect: bool) -> AbstractContextManager[None]:
        """A context for the time in which items of a chunk are in progress."""
        return self.decode_step.with_suspect() if is_suspect else nullcontext()

    def destination(
        self,
        loading: Loading,
        pixel_spec: PixelSpec,
        job: Job,
        outcomes: Outcomes,
        stored: StoredImages | None = None,
        *,
        is_suspect: bool,
    ) -> Destination:
        """Make the destination of the items of one chunk."""
        ahead = Ahead(loading, lambda work: self.decode_pool.submit(job.lane, work, outcomes.interrupt))
        return Destination(
            loading, ahead, pixel_spec, job.decode, job.exif, job.lane, outcomes, is_suspect, stored
        )

    def start(self, items: pa.Table, destination: Destination) -> None:
        """Start all items that have not ended; the row of an item is its position in the outcomes.

        Returns at once, also while the model loads.
        """
        remote: list[tuple[int, str]] = []
        local: list[tuple[int, Source]] = []
        inline = items[INLINE_COLUMN] if INLINE_COLUMN in items.schema.names else None
        for position, uri in enumerate(items["uri"].to_pylist()):
            if destination.outcomes.has_ended(position):
                continue
            if inline is not None and inline[position].is_valid:
                local.append((position, inline[position]))
                continue
            if not uri.strip():
                destination.outcomes.fail(position, _blank_url(items, position))
                continue
            try:
                if self.routes.is_local(uri):
                    local.append((position, uri))
                else:
                    remote.append((position, uri))
            except ItemFailure as failure:
                destination.outcomes.fail(position, failure.error)
        if remote:
            on_slice = partial(self._in_pool, destination, self._decode_fetched)
            known = None if destination.stored is None else destination.stored.known
            self.fetch_loop.fetch(
                FetchRequest(remote, destination.outcomes, on_slice, destination.lane, known)
            )
        is_large = len(local) >= 2 * _ITEMS_PER_SLICE * self.decode_threads
        size = _ITEMS_PER_SLICE if is_large else _ITEMS_PER_SMALL_SLICE
        for start in range(0, len(local), size):
            self._in_pool(destination, self._read_and_decode, local[start : start + size])

    def start_texts(self, texts: Sequence[str | None], destination: Destination) -> None:
        """Submit texts to the batcher; blocks until the model is loaded and has room."""
        outcomes = destination.outcomes
        given: list[tuple[int, str]] = []
        for position, text in enumerate(texts):
            if text is None or not text.strip():
                outcomes.fail(position, ItemError(ErrorCode.EMPTY, "the item has no text"))
            else:
                given.append((position, text))
        for start in range(0, len(given), _TEXTS_PER_SLICE):
            positions, some = zip(*given[start : start + _TEXTS_PER_SLICE], strict=True)
            if outcomes.is_interrupted:
                return
            self.batcher.submit(
                ItemSlice(
                    destination.loading.result(), destination.lane, list(some), list(positions), outcomes
                )
            )

    def _in_pool(
        self, destination: Destination, work: Callable[[Destination, list[T]], _Decoded], items: list[T]
    ) -> None:
        queued, count = time.monotonic(), len(items)

        def run() -> None:
            if destination.ahead.is_full:
                destination.ahead.then(partial(self._in_pool, destination, work, items))
                return
            with self.decode_busy:
                decoded = work(destination, items)
            destination.outcomes.add_wait(Meter.BEYOND, (time.monotonic() - queued) * count)
            self._hand_over(destination, decoded)

        self.decode_pool.submit(destination.lane, run, destination.outcomes.interrupt)

    def _read_and_decode(self, destination: Destination, items: list[tuple[int, Source]]) -> _Decoded:
        decoded = _Decoded()
        outcomes = destination.outcomes
        with self.decode_lock.hold() as hold:
            for files in self._read_some(outcomes, items, decoded):
                if destination.stored is not None:
                    files[:] = destination.stored.settle(outcomes, files)
                for position, data in files:
                    if not outcomes.is_interrupted:
                        self._decode(destination, position, data, decoded, hold)
                files.clear()  # frees them before the next ones are read
        outcomes.add_wait(Meter.READING, decoded.fetch_seconds)
        return decoded

    def _read_some(
        self, outcomes: Outcomes, items: list[tuple[int, Source]], decoded: _Decoded
    ) -> Iterator[FetchedSlice]:
        """Read local files in groups of about `_BYTES_READ_AHEAD`."""
        some: FetchedSlice = []
        size_bytes, started = 0, time.monotonic()
        for position, source in items:
            if outcomes.is_interrupted:
                return
            try:
                data = self._read(source)
            except ItemFailure as failure:
                shortage = shortage_behind(failure)
                if shortage is not None:
                    raise shortage from failure
                outcomes.fail(position, failure.error)
                continue
            some.append((position, data))
            size_bytes += len(data)
            if size_bytes >= _BYTES_READ_AHEAD:
                decoded.fetch_seconds += time.monotonic() - started
                yield some
                some, size_bytes, started = [], 0, time.monotonic()
        decoded.fetch_seconds += time.monotonic() - started
        yield some

    def _read(self, source: Source) -> bytes:
        if isinstance(source, str):
            return self.routes.read(source)
        if len(source.as_buffer()) > self.max_image_bytes:
            raise too_many_bytes(self.max_image_bytes)
        data: bytes = source.as_py()
        return data

    def _decode_fetched(self, destination: Destination, fetched: FetchedSlice) -> _Decoded:
        decoded = _Decoded()
        try:
            if destination.stored is not None:
                self._settle(destination.stored, destination.outcomes, fetched)
            with self.decode_lock.hold() as hold:
                while fetched:  # popped one by one, to free the bytes before the wait for the batcher
                    position, data = fetched.pop()
                    size = len(data)
                    try:
                        if not destination.outcomes.is_interrupted:
                            self._decode(destination, position, data, decoded, hold)
                    finally:
                        del data
                        self.waiting_bytes.remove(size)
        finally:  # bytes that a bug leaves behind must not block fetches for ever
            self.waiting_bytes.remove(sum(len(data) for _, data in fetched))
        return decoded

    def _settle(self, stored: StoredImages, outcomes: Outcomes, fetched: FetchedSlice) -> None:
        """Keep only images that the store lacks."""
        before = sum(len(data) for _, data in fetched)
        fetched[:] = stored.settle(outcomes, fetched)
        self.waiting_bytes.remove(before - sum(len(data) for _, data in fetched))

    def _decode(
        self, destination: Destination, position: int, data: bytes, decoded: _Decoded, hold: Hold
    ) -> None:
        started = time.monotonic()
        outcomes = destination.outcomes
        if destination.stored is None:
            outcomes.content_hashes[position] = hashlib.sha256(data).hexdigest()
        try:
            image = self.decode_step.decode(
                data,
                destination.pixel_spec,
                destination.decode,
                destination.exif,
                is_suspect=destination.is_suspect,
            )
        except ItemFailure as failure:
            outcomes.fail(position, failure.error)
        else:
            outcomes.widths[position], outcomes.heights[position] = image.width, image.height
            decoded.positions.append(position)
            decoded.images.append(image.pixels)
        decoded.decode_seconds += time.monotonic() - started
        hold.count_image()

    def _hand_over(self, destination: Destination, decoded: _Decoded) -> None:
        outcomes = destination.outcomes
        outcomes.add_seconds("fetch", decoded.fetch_seconds)
        outcomes.add_seconds("decode", decoded.decode_seconds)
        if decoded.images:
            size_bytes = sum(image.nbytes for image in decoded.images)
            destination.ahead.then(partial(self._submit, destination, decoded), size_bytes)

    def _submit(self, destination: Destination, decoded: _Decoded) -> None:
        """Submit images to the batcher, now that their model is loaded."""
        outcomes = destination.outcomes
        if not outcomes.is_interrupted:
            model = destination.loading.result()
            self.batcher.submit(
                ItemSlice(model, destination.lane, decoded.images, decoded.positions, outcomes)
            )


class _Decoded:
    """Images of one slice, and the time that they took."""

    def __init__(self) -> None:
        self.positions: list[int] = []
        self.images: list[np.ndarray] = []
        self.fetch_seconds = 0.0
        self.decode_seconds = 0.0


def _blank_url(items: pa.Table, position: int) -> ItemError:
    item_id = items["item_id"][position].as_py() or items["item_index"][position].as_py()
    return ItemError(ErrorCode.BAD_URI, f"the URL is blank (item {str(item_id)[:_SHOWN_ID]})")
