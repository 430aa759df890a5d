"""How busy a step is, by a clock that is moved by hand."""

from __future__ import annotations

import pytest

from clipfleet_worker.process.counts import Busy, BusyMeter
from tests.support.doubles import Clock


def test_work_counts_while_a_thread_is_inside() -> None:
    clock = Clock()
    meter = BusyMeter(2, clock)
    clock.now += 1
    with meter:
        clock.now += 2
        with meter:
            clock.now += 3
    clock.now += 4

    assert meter.read() == Busy(seconds=2 + 2 * 3, capacity_seconds=2 * 10)


def test_what_is_under_way_counts_already() -> None:
    clock = Clock()
    meter = BusyMeter(1, clock)
    with meter:
        clock.now += 5
        before = meter.read()
        clock.now += 2
        assert meter.read().since(before) == Busy(2, 2)


def test_an_error_ends_the_work() -> None:
    clock = Clock()
    meter = BusyMeter(1, clock)
    with pytest.raises(ValueError, match="broken"), meter:
        raise ValueError("broken")
    clock.now += 5

    assert meter.read() == Busy(0, 5)
