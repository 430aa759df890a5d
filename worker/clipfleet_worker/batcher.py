"""The one thread that owns the device: slices of many chunks become batches, batches become features.

Images of the best lane go first; a batch holds images of one model only, whatever their chunks and jobs.
Texts go the same way. A batch that fails is halved until the guilty image is alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from clipfleet.contract import ErrorCode, ItemError, Lane
from clipfleet_worker.outcomes import Outcomes

log = logging.getLogger(__name__)

_LANE_ORDER = tuple(Lane)
_LINGER_SECONDS = 0.005  # a partial batch goes when the device is idle and nothing came for this long
_TEXTS_PER_PASS = 64  # so that a large label set does not hold up the images of other jobs


class Encoder(Protocol):
    """A loaded model, as far as the batcher needs it."""

    def encode_images(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels uint8 (n, height, width, 3) -> features float32 (n, d), L2-normalised."""
        ...

    def encode_texts(self, prompts: list[str]) -> np.ndarray:
        """Prompts -> features float32 (n, d), L2-normalised."""
        ...


@dataclass(eq=False, slots=True)
class ImageSlice:
    """Some decoded images of one chunk, to be encoded together or apart."""

    encoder: Encoder
    lane: Lane
    images: list[np.ndarray]  # uint8 (height, width, 3), all of the model's size
    positions: list[int]  # of the images in the chunk
    outcomes: Outcomes
    taken: int = 0  # images already in a batch


@dataclass(eq=False, slots=True)
class _TextSlice:
    encoder: Encoder
    lane: Lane
    prompts: list[str]
    future: Future[np.ndarray]


@dataclass(frozen=True, slots=True)
class _Segment:
    """The part of a slice that went into one batch."""

    slice: ImageSlice
    start: int
    stop: int


class BatcherStopped(RuntimeError):  # noqa: N818
    """The worker is going down; nothing will be encoded any more."""


class Batcher:
    """Start it once per device share; `submit` and `encode_texts` may be called from any thread."""

    def __init__(self, batch_size: int, *, ring_batches: int = 3) -> None:
        self._batch_size = batch_size
        self._ring_images = batch_size * ring_batches
        self._waiting_images = 0
        self._images: dict[Lane, deque[ImageSlice]] = {lane: deque() for lane in _LANE_ORDER}
        self._texts: dict[Lane, deque[_TextSlice]] = {lane: deque() for lane in _LANE_ORDER}
        self._texts_went_last = False
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Fail what waits, end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        for texts in self._texts.values():
            for waiting in texts:
                waiting.future.set_exception(BatcherStopped("the worker stops"))
        for images in self._images.values():
            for part in images:
                part.outcomes.interrupt(BatcherStopped("the worker stops"))

    def submit(self, part: ImageSlice) -> None:
        """Queue images; blocks while the ring is full.

        Raises:
            BatcherStopped: the worker is going down.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting_images < self._ring_images or self._stopping)
            if self._stopping:
                raise BatcherStopped("the worker stops")
            self._waiting_images += len(part.images)
            self._images[part.lane].append(part)
            self._changed.notify_all()

    def encode_texts(self, encoder: Encoder, prompts: Sequence[str], lane: Lane) -> np.ndarray:
        """Features of texts, float32 (len(prompts), d); blocks until they are there."""
        futures: list[Future[np.ndarray]] = []
        with self._changed:
            if self._stopping:
                raise BatcherStopped("the worker stops")
            for start in range(0, len(prompts), _TEXTS_PER_PASS):
                future: Future[np.ndarray] = Future()
                futures.append(future)
                texts = list(prompts[start : start + _TEXTS_PER_PASS])
                self._texts[lane].append(_TextSlice(encoder, lane, texts, future))
            self._changed.notify_all()
        return np.concatenate([future.result() for future in futures])

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._next_lane() is not None)
                if self._stopping:
                    return
                texts = self._next_texts()
                batch = [] if texts else self._gather()
            if texts:
                _answer(texts)
            else:
                self._encode(batch)

    def _next_lane(self) -> Lane | None:
        return next((lane for lane in _LANE_ORDER if self._texts[lane] or self._images[lane]), None)

    def _next_texts(self) -> _TextSlice | None:
        """Texts of the best lane, if it is their turn: where a lane has both, texts and images alternate."""
        lane = self._next_lane()
        if lane is None or not self._texts[lane] or (self._images[lane] and self._texts_went_last):
            self._texts_went_last = False
            return None
        self._texts_went_last = True
        return self._texts[lane].popleft()

    def _gather(self) -> list[_Segment]:
        """A batch of one model, best lane first; called with the lock held, lets it go while it lingers."""
        batch: list[_Segment] = []
        encoder: Encoder | None = None
        room = self._batch_size
        while room and not self._stopping:
            taken = 0
            for lane in _LANE_ORDER:
                encoder, count = self._take(lane, encoder, room - taken, batch)
                taken += count
            room -= taken
            if room and taken:
                self._changed.notify_all()  # the ring has room again
            if room and not taken and not self._changed.wait(_LINGER_SECONDS):
                break
        self._changed.notify_all()
        return batch

    def _take(
        self, lane: Lane, encoder: Encoder | None, room: int, batch: list[_Segment]
    ) -> tuple[Encoder | None, int]:
        queue, kept, count = self._images[lane], deque[ImageSlice](), 0
        while queue and count < room:
            part = queue.popleft()
            encoder = part.encoder if encoder is None else encoder
            if part.encoder is not encoder:
                kept.append(part)
                continue
            stop = min(len(part.images), part.taken + room - count)
            batch.append(_Segment(part, part.taken, stop))
            count += stop - part.taken
            part.taken = stop
            if stop < len(part.images):
                kept.append(part)
        queue.extendleft(reversed(kept))
        self._waiting_images -= count
        return encoder, count

    def _encode(self, batch: list[_Segment]) -> None:
        live = [segment for segment in batch if not segment.slice.outcomes.is_interrupted]
        if not live:
            return
        images = [image for segment in live for image in segment.slice.images[segment.start : segment.stop]]
        started = time.monotonic()
        results = _encode_or_bisect(live[0].slice.encoder.encode_images, images)
        share = (time.monotonic() - started) / len(images)
        some_worked = any(not isinstance(result, Exception) for result in results)
        offset = 0
        for segment in live:
            count = segment.stop - segment.start
            segment.slice.outcomes.add_seconds("encode", share * count)  # first: the chunk may end now
            _deliver(segment, results[offset : offset + count], some_worked)
            offset += count


def _encode_or_bisect(
    encode: Callable[[np.ndarray], np.ndarray], images: list[np.ndarray]
) -> list[np.ndarray | Exception]:
    """Features of each image; where the forward fails, the exception of the image that is left alone."""
    try:
        return list(encode(np.stack(images)))
    except (RuntimeError, ValueError, MemoryError, ArithmeticError) as error:
        # torch raises RuntimeError for nearly everything, out of device memory included.
        log.warning(
            "a batch of %d failed: %s", len(images), error, extra={"action": "batch_failed"}, exc_info=True
        )
        if len(images) == 1:
            return [error]
        half = len(images) // 2
        first, second = _encode_or_bisect(encode, images[:half]), _encode_or_bisect(encode, images[half:])
        if all(isinstance(result, Exception) for result in first + second):
            return [error] * len(images)
        return first + second


def _deliver(segment: _Segment, results: list[np.ndarray | Exception], some_worked: bool) -> None:
    outcomes = segment.slice.outcomes
    positions = segment.slice.positions[segment.start : segment.stop]
    good: list[tuple[int, np.ndarray]] = []
    for position, result in zip(positions, results, strict=True):
        if not isinstance(result, Exception):
            good.append((position, result))
        elif some_worked:
            code = ErrorCode.OUT_OF_MEMORY if isinstance(result, MemoryError) else ErrorCode.CRASHED
            outcomes.fail(position, ItemError(code, f"the forward pass failed on this image: {result}"[:300]))
        else:
            outcomes.interrupt(result)  # nothing in the batch worked: it is not the image's fault
    if good:
        outcomes.deliver([position for position, _ in good], np.stack([result for _, result in good]))


def _answer(texts: _TextSlice) -> None:
    try:
        texts.future.set_result(texts.encoder.encode_texts(texts.prompts))
    except (RuntimeError, ValueError, MemoryError, ArithmeticError) as error:
        texts.future.set_exception(error)
