"""Forward passes on the CPU, a part of the batch per group of cores, side by side.

Threads that share one pass wait for one another after each layer; whenever decoding takes the core of one,
all others wait. Passes that share nothing do not wait. On two cores (Xeon with AMX, ViT-B-32 in bf16),
images/s of two threads to those of torch's own two on one pass of 64: 1.12 with parts of 32, 0.90 with parts
of 64; with decoding beside them, in a whole worker, 1.13 to 1.21 (1.07 in fp32).

torch is imported when a backend is made, not before.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from clipfleet_worker.encode.backends import Backend
from clipfleet_worker.encode.bisecting import FORWARD_ERRORS
from clipfleet_worker.process.cores import passes_side_by_side

if TYPE_CHECKING:
    import torch

Pass: TypeAlias = Callable[[], np.ndarray]
_Tasks: TypeAlias = "SimpleQueue[tuple[Pass, Future[np.ndarray]] | None]"


class OnePass(Backend, Protocol):
    """A thread-safe backend: several threads call it, each for a part of a batch."""

    def encode_images(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels -> features, in the calling thread."""


class SideBySideBackends:
    """Makes the backends of a process, which share threads: no more run than there are cores."""

    def __init__(self) -> None:
        self._passes: Passes | None = None
        self._lock = threading.Lock()

    def make(self, make_one: Callable[[int], OnePass]) -> Backend:
        """A backend for a model whose modules keep no state between calls.

        Args:
            make_one: makes the backend of one part, from the number of threads that call it at a time. On one
                core it is returned as it is.
        """
        import torch

        with self._lock:
            threads = torch.get_num_threads()
            if threads < 2:
                return make_one(1)
            if self._passes is None:
                self._passes = Passes(threads)
        return SideBySideBackend(make_one(self._passes.count), self._passes)


class SideBySideBackend:
    """See `Backend`."""

    batches_in_flight = 2  # so that a thread that finishes its part has another one

    def __init__(self, one: OnePass, passes: Passes) -> None:
        self.name = one.name
        self.new_pixels = one.new_pixels
        self._one = one
        self._passes = passes

    def begin_images(self, pixels: np.ndarray) -> PendingParts:
        return self._begin(self._one.encode_images, pixels)

    def encode_texts(self, tokens: torch.Tensor) -> np.ndarray:
        return self._begin(self._one.encode_texts, tokens).result()

    def _begin(self, encode: Callable[[Any], np.ndarray], items: Any) -> PendingParts:
        size = max(1, -(-len(items) // self._passes.count))
        parts = [partial(encode, items[start : start + size]) for start in range(0, max(1, len(items)), size)]
        return PendingParts(parts, [self._passes.submit(part) for part in parts], self._passes)


class Passes:
    """Threads that run forward passes, each with its share of the cores; they end with this object."""

    def __init__(self, threads: int) -> None:
        """Start them.

        Args:
            threads: torch's number for one pass, divided among these; other threads keep theirs.
        """
        import torch

        self.count, threads_each = passes_side_by_side(threads)
        self._tasks: _Tasks = SimpleQueue()
        self._unfinished: set[Future[np.ndarray]] = set()
        weakref.finalize(self, _end, self._tasks, self.count).atexit = False
        try:
            for number in range(self.count):
                has_share = threading.Event()
                # A daemon: a pass that hangs must not keep the process alive.
                threading.Thread(
                    target=_run,
                    args=(self._tasks, threads_each, has_share),
                    name=f"forward-{number}",
                    daemon=True,
                ).start()
                has_share.wait()
        finally:
            torch.set_num_threads(threads)  # setting theirs has changed the default of new threads, too

    def submit(self, work: Pass) -> Future[np.ndarray]:
        """Run a pass as soon as one of the threads is free."""
        future: Future[np.ndarray] = Future()
        self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        self._tasks.put((work, future))
        return future

    def wait_until_idle(self) -> None:
        """Block until all that was submitted has ended."""
        wait(list(self._unfinished))


@dataclass(frozen=True, slots=True)
class PendingParts:
    """See `PendingFeatures`: the parts of a batch, in order."""

    works: Sequence[Pass]
    futures: Sequence[Future[np.ndarray]]
    passes: Passes

    def wait_for_room(self) -> bool:
        """Block until a thread has finished its part."""
        wait(self.futures, return_when=FIRST_COMPLETED)
        return True

    def result(self) -> np.ndarray:
        """Wait for all parts; if several failed, raise the error of the first."""
        lacked_memory = [isinstance(one.exception(), MemoryError) for one in self.futures]
        if any(lacked_memory):
            # Memory may be enough for one pass at a time.
            self.passes.wait_until_idle()
        parts = zip(self.works, self.futures, lacked_memory, strict=True)
        return np.concatenate(
            [(self.passes.submit(work) if again else future).result() for work, future, again in parts]
        )


def _run(tasks: _Tasks, threads_each: int, has_share: threading.Event) -> None:
    import torch

    torch.get_num_threads()  # otherwise the first pass would set the number of the process
    torch.set_num_threads(threads_each)
    has_share.set()
    while (task := tasks.get()) is not None:
        work, future = task
        try:
            features = work()
        except FORWARD_ERRORS as error:
            future.set_exception(error)
        except BaseException as error:
            # The caller must not wait forever, even if the end of this thread does not end the process.
            future.set_exception(error)
            raise
        else:
            future.set_result(features)
            del features
        del task, work, future  # while it waits for work it keeps no model alive


def _end(tasks: _Tasks, count: int) -> None:
    for _ in range(count):
        tasks.put(None)
