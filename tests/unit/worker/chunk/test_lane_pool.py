"""The best lane goes first; whatever happens to a piece of work, the threads live on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from unittest.mock import Mock

import pytest

from clipfleet.contract.jobs import Lane
from clipfleet_worker.chunk.lane_pool import LanePool
from clipfleet_worker.failures import ChunkInterrupted
from tests.support.doubles import PATIENCE_SECONDS


class Bench:
    """A pool of one thread, which is busy until it is freed; each work notes its name, or its error."""

    def __init__(self) -> None:
        self.pool = LanePool(1, name="test")
        self.done: list[str] = []
        self.errors: list[BaseException] = []
        self._began, self._go_on = threading.Event(), threading.Event()
        self.pool.submit(Lane.BULK, self._hold, self.errors.append)
        assert self._began.wait(PATIENCE_SECONDS)

    def _hold(self) -> None:
        self._began.set()
        assert self._go_on.wait(PATIENCE_SECONDS)

    def submit(self, lane: Lane, name: str) -> None:
        self.pool.submit(lane, lambda: self.done.append(name), self.errors.append)

    def free(self) -> None:
        """Until all that was submitted has been done."""
        done = threading.Event()
        self.pool.submit(Lane.BULK, done.set, self.errors.append)
        self._go_on.set()
        assert done.wait(PATIENCE_SECONDS)

    def stop(self) -> None:
        self._go_on.set()
        self.pool.stop()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.stop()


def test_lanes_go_in_their_order_and_each_first_come_first_served(bench: Bench) -> None:
    for lane, name in (
        (Lane.BULK, "b1"), (Lane.NORMAL, "n1"), (Lane.HIGH, "h1"), (Lane.BULK, "b2"), (Lane.HIGH, "h2"),
    ):  # fmt: skip
        bench.submit(lane, name)

    bench.free()

    assert bench.done == ["h1", "h2", "n1", "b1", "b2"]


@pytest.mark.parametrize("error", [ValueError("bug"), MemoryError(), SystemExit(1)])
def test_an_error_is_reported_and_costs_no_thread(bench: Bench, error: BaseException) -> None:
    bench.pool.submit(Lane.HIGH, Mock(side_effect=error), bench.errors.append)
    bench.submit(Lane.BULK, "next")
    bench.free()

    assert bench.errors == [error]
    assert bench.done == ["next"]


def test_work_that_has_not_begun_when_the_pool_stops_is_interrupted(bench: Bench) -> None:
    bench.submit(Lane.HIGH, "too late")

    bench.pool.stop()

    assert [type(error) for error in bench.errors] == [ChunkInterrupted]
    assert bench.done == []
