"""The watchdog ends a process in which a loop hangs, and no other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest

from clipfleet_worker.process.watchdog import EXIT_HUNG, Phase, Watchdog
from tests.support.doubles import Clock
from tests.support.waiting import wait_until
from tests.support.watchers import Looks


class Bench:
    """A watchdog whose clock and exit are ours. A look takes place every second, as in production."""

    def __init__(self) -> None:
        self.clock, self.exits, self.dumps = Clock(), list[int](), 0
        self.watchdog = Watchdog(monotonic=self.clock, exit_process=self.exits.append, dump_stacks=self._dump)

    def _dump(self) -> None:
        assert not self.exits  # the stacks come first
        self.dumps += 1

    def pass_time(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.now += 1
            self.watchdog.check()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_phase_beyond_its_limit_ends_the_process_with_all_stacks(bench: Bench, caplog: Any) -> None:
    pulse = bench.watchdog.pulse("batcher")
    pulse.enter("encode", 30)
    bench.pass_time(30)
    assert (bench.exits, bench.dumps) == ([], 0)
    bench.pass_time(1)
    assert (bench.exits, bench.dumps) == ([EXIT_HUNG], 1)
    assert "batcher hangs: encode takes more than 30 s" in caplog.text


def test_each_phase_has_its_own_limit_and_rest_has_none(bench: Bench) -> None:
    pulse = bench.watchdog.pulse("lease keeper")
    for _ in range(5):
        pulse.enter("renew", 30)
        bench.pass_time(29)
    with pulse.during("renew", 10):
        bench.pass_time(9)
    bench.pass_time(1000)
    pulse.rest("reconnecting")
    bench.pass_time(1000)
    assert bench.exits == []


def test_an_activity_is_watched_until_it_ends_and_forgotten_then(bench: Bench) -> None:
    with pytest.raises(ValueError, match="broken"), bench.watchdog.activity("decode", "a.jpg", 20):
        assert [phase.name for phase in bench.watchdog.phases()] == ["a.jpg"]
        raise ValueError("broken")
    assert bench.watchdog.phases() == []
    bench.pass_time(100)
    assert bench.exits == []
    with bench.watchdog.activity("decode", "b.jpg", 20), bench.watchdog.activity("decode", "c.jpg", 200):
        bench.pass_time(21)
        assert bench.exits == [EXIT_HUNG]
        assert [phase.name for phase in bench.watchdog.overdue()] == ["b.jpg"]


def test_a_source_is_asked_at_every_look(bench: Bench) -> None:
    phases = [Phase("chunk", "write", bench.clock.now, 40)]
    bench.watchdog.watch(lambda: phases)
    bench.pass_time(40)
    phases[:] = [Phase("chunk", "read", bench.clock.now, 40)]
    bench.pass_time(40)
    assert bench.exits == []
    bench.pass_time(1)
    assert bench.exits == [EXIT_HUNG]


def test_time_in_which_the_whole_process_stood_still_does_not_count(bench: Bench) -> None:
    bench.watchdog.pulse("batcher").enter("encode", 30)
    bench.pass_time(20)
    bench.clock.now += 3600  # the virtual machine was frozen
    assert bench.watchdog.overdue() == []  # whoever asks first
    bench.pass_time(10)
    assert bench.exits == []
    bench.pass_time(1)
    assert bench.exits == [EXIT_HUNG]


def test_a_real_process_ends_with_70_and_shows_where_each_thread_is() -> None:
    program = """
import threading
from clipfleet_worker.process.watchdog import Watchdog

def sleeps_for_ever():
    threading.Event().wait()

watchdog = Watchdog()
watchdog.pulse("sleeper").enter("sleep", 0.1)
watchdog.start()
sleeps_for_ever()
"""
    argv = [sys.executable, "-c", program]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == EXIT_HUNG, ended.stderr
    assert "sleeps_for_ever" in ended.stderr
    assert "watchdog.py" in ended.stderr


# It says what it does, and does what it reads.
WATCHED = """
import ctypes
import sys
import threading
from clipfleet_worker.process.watchdog import Watchdog

def sleeps_with_the_lock():
    while True:
        ctypes.PyDLL(None).sleep(1000)

looked = threading.Event()
watchdog = Watchdog(look_seconds=0.05, standstill_seconds=1)
watchdog.watch(lambda: looked.set() or ())
watchdog.start()
for line in sys.stdin:
    looked.clear()
    looked.wait()
    child = watchdog._standstill._child
    print(child and child.pid, flush=True)
    if "hang" in line:
        sleeps_with_the_lock()
"""


class Watched:
    """A process with a watchdog that loses patience after a second."""

    def __enter__(self) -> Self:
        argv, pipe = [sys.executable, "-c", WATCHED], subprocess.PIPE
        self.process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self.watcher = self.tell("go on")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def tell(self, what: str) -> int:
        """Returns once it has looked since; the id of the process beside it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(what, file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def end(self) -> tuple[int, str]:
        """How it ends by itself, and what it says."""
        _, words = self.process.communicate(timeout=60)
        return self.process.returncode, words


def test_a_library_that_hangs_and_lets_no_other_thread_run_ends_the_process_too() -> None:
    with Watched() as watched:
        watched.tell("hang")
        code, words = watched.end()

    assert code == signal.SIGALRM, words
    assert "a library holds the GIL; the process ends" in words.splitlines()[0]
    assert "sleeps_with_the_lock" in words


def test_neither_a_pause_nor_signals_for_the_worker_end_it_or_its_watcher() -> None:
    with Watched() as watched:
        watched.process.send_signal(signal.SIGSTOP)
        looks = Looks(watched.watcher)
        wait_until(lambda: looks.since >= 40, "twice its patience has passed")
        watched.process.send_signal(signal.SIGCONT)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(watched.watcher, number)

        assert watched.tell("go on") == watched.watcher
        watched.tell("hang")
        assert watched.end()[0] == signal.SIGALRM


def test_the_watcher_ends_with_the_process() -> None:
    with Watched() as watched:
        watched.process.kill()
        watched.process.communicate(timeout=60)  # it has the same standard error

    wait_until(lambda: not Path(f"/proc/{watched.watcher}").exists(), "it has ended")


def test_without_its_watcher_a_process_that_hangs_ends_all_the_same() -> None:
    with Watched() as watched:
        os.kill(watched.watcher, signal.SIGKILL)
        with suppress(ValueError):  # it has none any more, and says so
            watched.tell("hang")
        code, words = watched.end()

    assert code == 1, words
    assert "cannot start the process that detects hangs (Broken pipe)" in words
    assert "sleeps_with_the_lock" in words


def test_it_can_be_stopped() -> None:
    watchdog = Watchdog()
    watchdog.start()
    watchdog.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "watchdog"]
