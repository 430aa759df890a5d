"""The clock for limits does not count what the process could not use."""

from __future__ import annotations

from clipfleet_worker.process.watchdog import RunningTime
from tests.support.doubles import Clock


def test_it_goes_as_the_other_one_does_while_it_is_asked() -> None:
    clock = Clock()
    running = RunningTime(clock)
    began = running()
    for _ in range(300):
        clock.now += 1
        running()

    assert running() - began == 300


def test_a_pause_is_left_out_whoever_asks_first_after_it() -> None:
    clock = Clock()
    running = RunningTime(clock)
    began = running()
    clock.now += 5
    running()
    clock.now += 3600

    assert running() - began == 5
    clock.now += 1
    assert running() - began == 6
