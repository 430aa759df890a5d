"""A model that is being loaded, and the images that are decoded for it meanwhile.

Its pixel spec is known long before its weights are loaded: the first chunk for it is fetched and decoded in
that time. The images wait here, up to a bound, and block no thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

from clipfleet.contract.model_names import HUB, LOCAL_DIR
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.pixel_spec import PixelSpec

# Of decoded images, 890 of 224 pixels: beyond these nothing is decoded until the model is loaded.
MAX_AHEAD_BYTES = 1 << 27
_LARGE_BYTES = 10_000_000  # a file from here on is counted in whole MB


class Loading(Future[LoadedModel]):
    """The model, once it is loaded, and its pixel spec, which may be known earlier."""

    def __init__(self, name: str = "a model") -> None:
        super().__init__()
        self._name = name if name.startswith((HUB, LOCAL_DIR)) else name.partition(":")[0]
        self.doing = f"loading {self._name}"  # in words, for people
        self.pixel_spec: Future[PixelSpec] = Future()
        self._has_leader = False
        self._lock = threading.Lock()

    def note_download(self, done_bytes: int, total_bytes: int) -> None:
        """Record how much of a file of the model is here."""
        self.doing = f"loading {self._name}"
        if done_bytes < total_bytes:
            digits = 0 if total_bytes >= _LARGE_BYTES else 1
            done, total = (f"{size / 1e6:,.{digits}f}" for size in (done_bytes, total_bytes))
            self.doing = f"downloading {done} of {total} MB"

    def announce(self, spec: PixelSpec) -> None:
        """Set the pixel spec before the weights are loaded."""
        self.pixel_spec.set_result(spec)

    def finish(self, model: LoadedModel) -> None:
        """Set the loaded model."""
        if not self.pixel_spec.done():
            self.pixel_spec.set_result(model.pixel_spec)
        self.set_result(model)

    def fail(self, error: BaseException) -> None:
        """Set the error because of which the model is not loaded."""
        if not self.pixel_spec.done():
            self.pixel_spec.set_exception(error)
        self.set_exception(error)

    def take_lead(self) -> bool:
        """Whether the caller's chunk may start before the model is loaded: one may, to bound memory."""
        with self._lock:
            is_first, self._has_leader = not self._has_leader, True
        return is_first


class Ahead:
    """The images of one chunk that are ready before their model. Thread-safe."""

    def __init__(
        self, loading: Future[LoadedModel], put_in_pool: Callable[[Callable[[], None]], None]
    ) -> None:
        """Nothing waits yet.

        Args:
            loading: the model to wait for.
            put_in_pool: runs a waiting function in another thread; returns at once.
        """
        self._loading = loading
        self._put_in_pool = put_in_pool
        self._bytes = 0
        self._waiting: list[Callable[[], None]] = []
        self._is_registered = False
        self._is_stopped = False
        self._lock = threading.Lock()

    @property
    def is_full(self) -> bool:
        """Whether the bound is reached and nothing more should be decoded."""
        return self._bytes >= MAX_AHEAD_BYTES and not self._is_over

    @property
    def _is_over(self) -> bool:
        return self._is_stopped or self._loading.done()

    def then(self, work: Callable[[], None], size_bytes: int = 0) -> None:
        """Run a function once the wait for the model is over: here if it is already, otherwise in the pool.

        Args:
            work: the function; its exceptions are raised here, or in the pool.
            size_bytes: of the images that wait with it.
        """
        if self._is_over:
            work()
            return
        with self._lock:
            self._waiting.append(work)
            self._bytes += size_bytes
            is_first, self._is_registered = not self._is_registered, True
        # Once: a future keeps its callbacks forever, and the images must not stay with the model.
        if is_first:
            self._loading.add_done_callback(lambda _: self._go_on())
        if self._is_over:  # it may have ended after `_go_on` emptied the list
            self._go_on()

    def stop_waiting(self) -> None:
        """End the wait: the chunk was interrupted, and its images and files have to be dropped now."""
        self._is_stopped = True
        self._go_on()

    def _go_on(self) -> None:
        with self._lock:
            waiting, self._waiting, self._bytes = self._waiting, [], 0
        for work in waiting:
            with suppress(RuntimeError):  # the pool is shut down: the worker stops
                self._put_in_pool(work)
