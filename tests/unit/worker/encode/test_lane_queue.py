"""Lanes have an order, but no work waits for ever."""

from __future__ import annotations

import pytest

from clipfleet.contract.jobs import Lane
from clipfleet_worker.encode.lane_queue import MOST_PASSED_OVER, LaneQueue


def test_the_best_lane_goes_first_and_within_it_the_first() -> None:
    queue = LaneQueue[str]()
    for lane, work in ((Lane.BULK, "d"), (Lane.NORMAL, "b"), (Lane.HIGH, "a"), (Lane.NORMAL, "c")):
        queue.put(lane, work)

    assert queue.best_lane is Lane.HIGH
    assert [queue.take() for _ in range(len(queue))] == list("abcd")
    assert queue.best_lane is None
    with pytest.raises(IndexError):
        queue.take()


def test_no_lane_waits_for_ever_behind_one_that_never_runs_dry() -> None:
    queue = LaneQueue[str]()
    queue.put(Lane.BULK, "bulk")
    queue.put(Lane.NORMAL, "normal")

    taken = []
    for _ in range(2 * MOST_PASSED_OVER + 2):
        queue.put(Lane.HIGH, "high")
        taken.append(queue.take())

    expected = ["high"] * MOST_PASSED_OVER
    assert taken == [*expected, "bulk", *expected, "normal"]
