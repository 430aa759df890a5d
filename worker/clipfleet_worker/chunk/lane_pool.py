"""A thread pool that runs the work of the best lane first.

An interactive image must not queue behind the thousands of a bulk job. Running work is not interrupted, so it
should be short.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, PriorityQueue
from typing import TypeAlias

from clipfleet.contract.jobs import Lane
from clipfleet_worker.failures import ChunkInterrupted
from clipfleet_worker.process.shortages import LenientThreadPool, shortage_behind

# The work, and the callback for its error.
_Work: TypeAlias = tuple[Callable[[], None], Callable[[BaseException], None]]

_RANKS = {lane: rank for rank, lane in enumerate(Lane)}


class LanePool:
    """Thread-safe."""

    def __init__(self, threads: int, *, name: str) -> None:
        self._waiting: PriorityQueue[tuple[int, int, _Work]] = PriorityQueue()
        self._numbers = itertools.count()  # first in, first out within a lane; works are never compared
        self._threads = LenientThreadPool(threads, thread_name_prefix=name)

    def submit(self, lane: Lane, run: Callable[[], None], on_error: Callable[[BaseException], None]) -> None:
        """Queue work; returns at once.

        Args: lane: of its job. run: the work. on_error: called with the exception of the work, with
            `ChunkInterrupted` if `stop` came first, or with `WorkerShortageError` if there is no thread; must
            not raise.
        """
        self._waiting.put((_RANKS[lane], next(self._numbers), (run, on_error)))
        try:
            self._threads.submit(self._run_best)
        except RuntimeError as error:
            shortage = shortage_behind(error)
            if shortage is None:
                raise
            # It stays queued for the next thread: dropping it might leak the memory that it holds.
            on_error(shortage)

    def stop(self) -> None:
        """Start no more work; does not wait for running work."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with suppress(Empty):
            while True:
                _, on_error = self._waiting.get_nowait()[2]
                on_error(ChunkInterrupted("the worker stops"))

    def _run_best(self) -> None:
        """Run the first work of the best lane; called once per submitted work."""
        run, on_error = self._waiting.get_nowait()[2]
        try:
            run()
        except BaseException as error:
            on_error(error)
            raise  # to the executor, which keeps its thread
