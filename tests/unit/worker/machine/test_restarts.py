"""When a child that died is restarted."""

from __future__ import annotations

from typing import cast

import pytest

from clipfleet_worker.machine.child import Child
from clipfleet_worker.machine.restarts import Restarter
from tests.support.doubles import Clock


class FakeChild:
    """What a `Restarter` needs of a `Child`."""

    name = "worker"

    def __init__(self) -> None:
        self.alive = True
        self.ready = False
        self.starts = 0
        self.words = ""
        self.error: OSError | None = None

    def start(self) -> None:
        self.starts += 1
        if self.error is not None:
            raise self.error
        self.alive = True

    def probe(self) -> bool:
        return self.alive and self.ready

    def ending(self) -> str:
        return "exit code 3"

    def tail(self) -> str:
        return self.words


class Bench:
    def __init__(self) -> None:
        self.child, self.clock = FakeChild(), Clock()
        self.restarter = Restarter(cast(Child, self.child), clock=self.clock)

    def poll_after(self, seconds: float) -> str | None:
        self.clock.now += seconds
        return self.restarter.poll()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_dead_child_is_restarted_when_its_wait_is_over_and_reported_when_it_is_ready(bench: Bench) -> None:
    assert bench.poll_after(0) is None

    bench.child.alive, bench.child.words = False, "Traceback\n  ValueError: no model "
    assert bench.poll_after(0) == ("worker ended (exit code 3), restarting it in 0.5 s: ValueError: no model")
    assert (bench.poll_after(0.4), bench.child.starts) == (None, 0)
    assert (bench.poll_after(0.2), bench.child.starts) == (None, 1)
    assert bench.poll_after(0) is None

    bench.child.ready = True
    assert [bench.poll_after(0), bench.poll_after(0)] == ["worker is back", None]


def test_the_wait_doubles_up_to_its_limit_and_starts_over_after_a_healthy_life(bench: Bench) -> None:
    waits = [(1, wait) for wait in ("0.5", "1", "2", "4", "8", "16", "30", "30")]
    for lived_seconds, wait in (*waits, (60, "0.5")):
        bench.child.alive = False
        assert (bench.poll_after(lived_seconds) or "").endswith(f"restarting it in {wait} s")
        assert bench.poll_after(100) is None


def test_a_start_that_fails_counts_as_a_death(bench: Bench) -> None:
    bench.child.alive, bench.child.error = False, OSError("no space left")
    bench.poll_after(0)

    assert bench.poll_after(1) == ("worker could not be restarted, restarting it in 1 s: no space left")
