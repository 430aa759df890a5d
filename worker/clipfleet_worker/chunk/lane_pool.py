"""Threads that do what they are given, that of the best lane first.

An image that somebody waits for must not stand in line behind the thousands of a bulk job. What has begun is
not interrupted, so the pieces of work should be small.
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

# What is to be done, and who hears of its error.
_Work: TypeAlias = tuple[Callable[[], None], Callable[[BaseException], None]]

_RANKS = {lane: rank for rank, lane in enumerate(Lane)}


class LanePool:
    """Its methods may be called from any thread."""

    def __init__(self, threads: int, *, name: str) -> None:
        self._waiting: PriorityQueue[tuple[int, int, _Work]] = PriorityQueue()
        self._numbers = itertools.count()  # of a lane the first come goes first; no two works are compared
        self._threads = LenientThreadPool(threads, thread_name_prefix=name)

    def submit(self, lane: Lane, run: Callable[[], None], on_error: Callable[[BaseException], None]) -> None:
        """Have something done; returns at once.

        Args:
            lane: of the job that needs it.
            run: the work.
            on_error: called with whatever the work raised, with `ChunkInterrupted` if it was not begun before
                `stop`, or with `WorkerShortageError` if there is no thread; must not raise.
        """
        self._waiting.put((_RANKS[lane], next(self._numbers), (run, on_error)))
        try:
            self._threads.submit(self._run_best)
        except RuntimeError as error:
            shortage = shortage_behind(error)
            if shortage is None:
                raise
            # It stays queued, and is done with the next work that gets a thread: it may hold memory.
            on_error(shortage)

    def stop(self) -> None:
        """Begin nothing more; what is under way is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with suppress(Empty):
            while True:
                _, on_error = self._waiting.get_nowait()[2]
                on_error(ChunkInterrupted("the worker stops"))

    def _run_best(self) -> None:
        """What waits in the best lane now: as often as something was submitted."""
        run, on_error = self._waiting.get_nowait()[2]
        try:
            run()
        except BaseException as error:
            on_error(error)
            raise  # to the executor, which keeps its thread
