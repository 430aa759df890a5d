"""The order of a drain, and what ends it."""

from __future__ import annotations

import threading

import pytest

from clipfleet_worker.process.drain import Drain
from clipfleet_worker.process.watchdog import Pulse
from tests.support.doubles import PATIENCE_SECONDS
from tests.support.waiting import wait_until


class Leaver:
    """Notes what it is told; gives back when it may."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.may_give_back = threading.Event()
        self.gave_back = True

    def take_nothing_more(self) -> None:
        self.told.append("take nothing more")

    def interrupt(self, reason: str) -> None:
        self.told.append("interrupt")

    def give_back(self, reason: str) -> bool:
        self.told.append("give back")
        assert self.may_give_back.wait(PATIENCE_SECONDS)
        return self.gave_back


class Bench:
    def __init__(self, seconds: float) -> None:
        self.leaver, self.exits, self.pulse = Leaver(), list[int](), Pulse("drain")
        self.drain = Drain(self.leaver, seconds, pulse=self.pulse, exit_process=self.exits.append)
        self.drain.start()

    def join(self) -> None:
        self.drain._thread.join(PATIENCE_SECONDS)
        assert not self.drain._thread.is_alive()


def test_nothing_happens_before_it_begins() -> None:
    bench = Bench(0)
    assert not bench.drain.has_begun
    assert bench.leaver.told == []
    assert bench.pulse.phase.is_idle


def test_all_steps_then_the_exit_with_0() -> None:
    bench = Bench(0)
    bench.leaver.may_give_back.set()
    bench.drain.begin()
    bench.drain.begin()  # a second SIGTERM
    bench.join()
    assert bench.leaver.told == ["take nothing more", "interrupt", "give back"]
    assert bench.exits == [0]


def test_a_worker_that_ends_by_itself_is_not_disturbed() -> None:
    bench = Bench(PATIENCE_SECONDS)
    bench.drain.begin()
    wait_until(lambda: bench.leaver.told, "it drains")
    bench.drain.end()
    bench.join()
    assert bench.leaver.told == ["take nothing more"]
    assert bench.exits == []


@pytest.mark.parametrize("is_silent", [False, True])
def test_what_cannot_be_given_back_leaves_the_end_to_the_watchdog(is_silent: bool) -> None:
    bench = Bench(0)
    bench.leaver.gave_back = False
    if not is_silent:
        bench.leaver.may_give_back.set()
    bench.drain.begin()
    wait_until(lambda: "give back" in bench.leaver.told, "it gives back")
    assert bench.exits == []
    assert bench.pulse.phase.limit_seconds == 5
    bench.leaver.may_give_back.set()
    bench.join()
    assert bench.exits == []
