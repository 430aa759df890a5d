"""A model on its way into memory, and what may be done for it meanwhile.

What it wants to see is known long before its weights are there: the first chunk that comes for it is fetched
and decoded in that time. Its images wait here, bounded, never in a thread that others need.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.pixel_spec import PixelSpec

# Of decoded images, 890 of 224 pixels: beyond these nothing more is decoded until the model is there.
MAX_AHEAD_BYTES = 1 << 27


class Loading(Future[LoadedModel]):
    """The model, once it is loaded, and what it wants to see, which may be known before."""

    def __init__(self) -> None:
        super().__init__()
        self.pixel_spec: Future[PixelSpec] = Future()
        self._has_leader = False
        self._lock = threading.Lock()

    def announce(self, spec: PixelSpec) -> None:
        """This is what the model wants to see; the weights follow."""
        self.pixel_spec.set_result(spec)

    def finish(self, model: LoadedModel) -> None:
        """The model is there."""
        if not self.pixel_spec.done():
            self.pixel_spec.set_result(model.pixel_spec)
        self.set_result(model)

    def fail(self, error: BaseException) -> None:
        """There will be no model."""
        if not self.pixel_spec.done():
            self.pixel_spec.set_exception(error)
        self.set_exception(error)

    def take_lead(self) -> bool:
        """Whether the caller's chunk may start before the model is there: one may, for memory's sake."""
        with self._lock:
            is_first, self._has_leader = not self._has_leader, True
        return is_first


class Ahead:
    """The images of one chunk that are ready before their model; used by many threads."""

    def __init__(
        self, loading: Future[LoadedModel], put_in_pool: Callable[[Callable[[], None]], None]
    ) -> None:
        """Nothing waits yet.

        Args:
            loading: what is waited for.
            put_in_pool: has what has waited done by another thread; returns at once.
        """
        self._loading = loading
        self._put_in_pool = put_in_pool
        self._bytes = 0
        self._waiting: list[Callable[[], None]] = []
        self._is_registered = False
        self._is_let_go = False
        self._lock = threading.Lock()

    @property
    def is_full(self) -> bool:
        """Whether so much waits that no more should be made."""
        return self._bytes >= MAX_AHEAD_BYTES and not self._is_over

    @property
    def _is_over(self) -> bool:
        return self._is_let_go or self._loading.done()

    def then(self, work: Callable[[], None], size_bytes: int = 0) -> None:
        """Do something once nobody waits for the model any more: here if that is so, else in the pool.

        Args:
            work: raises here, or in the pool.
            size_bytes: of the images that wait with it.
        """
        if self._is_over:
            work()
            return
        with self._lock:
            self._waiting.append(work)
            self._bytes += size_bytes
            is_first, self._is_registered = not self._is_registered, True
        # Once: a future keeps its callbacks for ever, and the images are not to stay with the model.
        if is_first:
            self._loading.add_done_callback(lambda _: self._go_on())
        if self._is_over:  # perhaps since `_go_on` has looked
            self._go_on()

    def let_go(self) -> None:
        """Wait no more: the chunk was interrupted, and its images and files are to be dropped now."""
        self._is_let_go = True
        self._go_on()

    def _go_on(self) -> None:
        with self._lock:
            waiting, self._waiting, self._bytes = self._waiting, [], 0
        for work in waiting:
            with suppress(RuntimeError):  # the pool is shut down: the worker stops, nobody waits any more
                self._put_in_pool(work)
