"""The order of a drain, and what ends it."""

from __future__ import annotations

import threading

import pytest

from clipfleet_worker.process.drain import Drain
from clipfleet_worker.process.watchdog import Pulse
from tests.support.doubles import PATIENCE_SECONDS
from tests.support.waiting import wait_until


class FakeWorker:
    """Records the steps; the release lasts until `may_release` is set."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.may_release = threading.Event()
        self.releases = True

    def stop_claiming(self) -> None:
        self.steps.append("stop claiming")

    def interrupt(self, reason: str) -> None:
        self.steps.append("interrupt")

    def release_all(self, reason: str) -> bool:
        self.steps.append("release all")
        assert self.may_release.wait(PATIENCE_SECONDS)
        return self.releases


class Bench:
    def __init__(self, seconds: float) -> None:
        self.worker, self.exits, self.pulse = FakeWorker(), list[int](), Pulse("drain")
        self.drain = Drain(self.worker, seconds, pulse=self.pulse, exit_process=self.exits.append)
        before = set(threading.enumerate())
        self.drain.start()
        (self.thread,) = set(threading.enumerate()) - before

    def join(self) -> None:
        self.thread.join(PATIENCE_SECONDS)
        assert not self.thread.is_alive()


def test_nothing_happens_before_it_begins() -> None:
    bench = Bench(0)
    assert not bench.drain.has_begun
    assert bench.worker.steps == []
    assert bench.pulse.phase.is_idle


def test_a_signal_inside_the_handler_of_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(threading.Event):
        """The second signal comes while `set` holds its lock, which is not re-entrant."""

        def set(self) -> None:
            sets.append(self)
            assert len(sets) == 1, "waits for itself for ever"
            drain.begin()
            super().set()

    sets: list[threading.Event] = []
    monkeypatch.setattr("clipfleet_worker.process.drain.threading.Event", Interrupted)
    drain = Drain(FakeWorker(), 0)
    drain.begin()
    assert drain.has_begun


def test_all_steps_then_the_exit_with_0() -> None:
    bench = Bench(0)
    bench.worker.may_release.set()
    bench.drain.begin()
    bench.drain.begin()  # a second SIGTERM
    wait_until(lambda: bench.exits == [0], "the process ends")
    assert bench.worker.steps == ["stop claiming", "interrupt", "release all"]


def test_a_worker_that_ends_by_itself_is_not_disturbed() -> None:
    bench = Bench(PATIENCE_SECONDS)
    bench.drain.begin()
    wait_until(lambda: bench.worker.steps, "it drains")
    bench.drain.end()
    bench.join()
    assert bench.worker.steps == ["stop claiming"]
    assert bench.exits == []


@pytest.mark.parametrize("is_silent", [False, True])
def test_a_release_that_fails_leaves_the_end_to_the_watchdog(is_silent: bool) -> None:
    bench = Bench(0)
    bench.worker.releases = False
    if not is_silent:
        bench.worker.may_release.set()
    bench.drain.begin()
    wait_until(lambda: "release all" in bench.worker.steps, "it releases")
    assert bench.exits == []
    assert bench.pulse.phase.limit_seconds == 5
    bench.worker.may_release.set()
    bench.join()
    assert bench.exits == []
