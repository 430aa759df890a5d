"""Threads that score stored vectors on the CPU, with one core each.

Chunks of stored vectors are all score and no forward pass: several in progress use the cores better than
torch's own threads, which busy-wait between its many short operations. Images keep the device's thread. The
best lane goes first, as there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol, TypeVar

from clipfleet.contract.jobs import Lane
from clipfleet_worker.encode.lane_queue import LaneQueue

T = TypeVar("T")

_MOST_THREADS = 4


class Caller(Protocol):
    """Runs products of features and labels where they belong."""

    def call(self, work: Callable[[], T], lane: Lane) -> T:
        """Run something short; blocks until it is done. Raises what `work` raises."""


class ScoringThreads:
    """See `Caller`. The threads start with the first call, and end with the process. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._waiting = LaneQueue[Callable[[], Any]]()

    def call(self, work: Callable[[], T], lane: Lane) -> T:
        done: Future[T] = Future()
        with self._lock:
            self._threads = self._threads or _started()
            self._waiting.put(lane, partial(_run, work, done))
            self._threads.submit(self._run_next)
        return done.result()

    def _run_next(self) -> None:
        """Run what is next by now; called once per call."""
        with self._lock:
            run = self._waiting.take()
        run()


def _run(work: Callable[[], T], done: Future[T]) -> None:
    try:
        done.set_result(work())
    except BaseException as error:
        done.set_exception(error)
        del done  # the exception holds this stack frame: a cycle would keep what failed in memory
        raise  # to the executor, which keeps its thread


def _started() -> ThreadPoolExecutor:
    import torch

    threads = torch.get_num_threads()
    count = min(threads, _MOST_THREADS)
    all_set = threading.Barrier(count + 1)

    def set_share() -> None:
        torch.get_num_threads()  # otherwise the first call would set the number of the process
        torch.set_num_threads(1)
        all_set.wait()

    pool = ThreadPoolExecutor(count, thread_name_prefix="score", initializer=set_share)
    try:
        for _ in range(count):
            pool.submit(int)
        all_set.wait()
    except BaseException:  # the machine refuses another thread
        all_set.abort()
        pool.shutdown(wait=False)
        raise
    finally:
        torch.set_num_threads(threads)  # setting theirs has changed the default of new threads, too
    return pool
