"""Children and their restarts. Children are real, tiny processes; back-off runs on the test's own clock."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clipfleet.errors import WorldError
from clipfleet_worker.machine.supervise import Child, Restarter, RestartPolicy, SignalRecorder
from clipfleet_worker.process import exec_child
from tests.support.processes import is_gone
from tests.support.waiting import wait_until

# --- Restart policy and restarter -------------------------------------------------------------------------


def test_the_wait_doubles_up_to_its_limit_and_starts_over_after_a_healthy_life() -> None:
    policy = RestartPolicy()
    waits = [0.0]
    for _ in range(9):
        waits.append(policy.delay(waits[-1], lived_seconds=1))
    assert waits[1:] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert policy.delay(30, lived_seconds=60) == 0.5


class FakeChild:
    """What a `Restarter` needs of a `Child`."""

    name = "worker"

    def __init__(self) -> None:
        self.alive = True
        self.ready = False
        self.starts = 0
        self.words = ""

    def start(self) -> None:
        self.starts += 1
        self.alive = True

    def probe(self) -> bool:
        return self.alive and self.ready

    def ending(self) -> str:
        return "exit code 3"

    def tail(self) -> str:
        return self.words


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_dead_child_is_started_when_its_wait_is_over_and_announced_when_it_is_ready() -> None:
    child, clock = FakeChild(), Clock()
    restarter = Restarter(child, clock=clock)
    assert restarter.poll() is None

    child.alive, child.words = False, "Traceback\n  ValueError: no model "
    assert restarter.poll() == (
        "worker ended (exit code 3), starting it again in 0.5 s; last words: ValueError: no model"
    )
    clock.now += 0.4
    assert restarter.poll() is None
    assert child.starts == 0
    clock.now += 0.2
    assert restarter.poll() is None
    assert child.starts == 1

    assert restarter.poll() is None
    child.ready = True
    assert restarter.poll() == "worker is back"
    assert restarter.poll() is None


def test_a_child_that_keeps_dying_waits_longer_and_a_healthy_one_starts_over() -> None:
    child, clock = FakeChild(), Clock()
    restarter = Restarter(child, clock=clock)

    def die_after(seconds: float) -> str:
        clock.now += seconds
        child.alive = False
        message = restarter.poll()
        clock.now += 100
        assert restarter.poll() is None
        return message or ""

    assert "again in 0.5 s" in die_after(1)
    assert "again in 1 s" in die_after(1)
    assert "again in 2 s" in die_after(1)
    assert "again in 0.5 s" in die_after(61)


def test_a_start_that_fails_counts_as_a_death() -> None:
    child, clock = FakeChild(), Clock()

    def start() -> None:
        raise OSError("no space left")

    restarter = Restarter(child, start, clock=clock)
    child.alive = False
    restarter.poll()
    clock.now += 1
    assert restarter.poll() == (
        "worker could not be started, starting it again in 1 s; last words: no space left"
    )


# --- Child ------------------------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "child.log"


@pytest.fixture
def launch(log: Path) -> Iterator[Callable[..., Child]]:
    children = []

    def new(*argv: str, log: Path | None = log, **options: object) -> Child:
        child = Child("child", argv, log=log, **options)
        children.append(child)
        child.start()
        return child

    yield new
    for child in children:
        child.kill()


def test_output_goes_to_a_private_log_and_the_tail_is_that_of_the_last_start(
    launch: Callable[..., Child], log: Path
) -> None:
    child = launch("sh", "-c", "echo run $$; exit 3")
    first = child.pid
    wait_until(lambda: not child.alive, "the child ends")
    assert (child.exit_code, child.ending()) == (3, "exit code 3")
    child.start()
    wait_until(lambda: not child.alive, "the child ends again")

    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert log.read_text() == f"run {first}\nrun {child.pid}\n"
    assert child.tail() == f"run {child.pid}"


def test_readiness_is_waited_for(launch: Callable[..., Child], tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    child = launch("sh", "-c", f"touch '{ready}'; exec sleep 1000", is_ready=ready.exists)
    assert child.wait_ready()
    assert child.wait_ready(lambda: False) is False


def test_a_probe_that_cannot_connect_means_not_ready_yet(launch: Callable[..., Child]) -> None:
    def refuse() -> bool:
        raise ConnectionRefusedError

    assert not launch("sleep", "1000", is_ready=refuse).probe()


def test_a_child_that_ends_while_starting_is_reported_with_its_last_words(
    launch: Callable[..., Child],
) -> None:
    child = launch("sh", "-c", "echo the disk is full; exit 4", is_ready=lambda: False)
    with pytest.raises(WorldError, match=r"(?s)ended while it started \(exit code 4\).*the disk is full"):
        child.wait_ready()


def test_a_child_that_is_never_ready_is_reported(launch: Callable[..., Child]) -> None:
    child = launch("sleep", "1000", is_ready=lambda: False, ready_seconds=0)
    with pytest.raises(WorldError, match="was not ready in 0 s"):
        child.wait_ready()


def test_stop_is_gentle_first(launch: Callable[..., Child]) -> None:
    child = launch("sleep", "1000")
    assert child.stop()
    assert child.ending() == "killed by SIGTERM"
    assert child.stop()


IGNORES_TERM = "trap '' TERM; sleep 1000 & echo $! > '{pids}'; wait; wait"


@pytest.mark.parametrize("options", [{"stop_seconds": 0}, {"stop_seconds": 1000}])
def test_stop_kills_the_group_of_a_child_that_does_not_listen(
    launch: Callable[..., Child], tmp_path: Path, options: dict[str, float]
) -> None:
    pids = tmp_path / "pids"
    child = launch("sh", "-c", IGNORES_TERM.format(pids=pids), **options)
    wait_until(lambda: pids.exists() and pids.read_text().strip(), "the child ignores SIGTERM")

    assert child.stop(hurry=lambda: options["stop_seconds"] > 0) is False
    assert child.ending() == "killed by SIGKILL"
    wait_until(lambda: is_gone(int(pids.read_text())), "the grandchild is gone")


def test_what_a_dead_child_leaves_behind_is_killed(launch: Callable[..., Child], tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    child = launch("sh", "-c", f"sleep 1000 & echo $! > '{pids}'")
    wait_until(lambda: not child.alive, "the child ends")
    wait_until(lambda: is_gone(int(pids.read_text())), "the grandchild is gone")


def test_a_child_with_a_log_has_its_own_session_and_one_without_shares_ours(
    launch: Callable[..., Child],
) -> None:
    apart, foreground = launch("sleep", "1000"), launch("sleep", "1000", log=None)
    assert os.getsid(apart.pid) == os.getpgid(apart.pid) == apart.pid
    assert os.getpgid(foreground.pid) == os.getpgrp()


def test_a_child_starts_with_default_signals(launch: Callable[..., Child], log: Path) -> None:
    ignored = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
    previous = [signal.signal(number, signal.SIG_IGN) for number in ignored]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        child = launch("cat", "/proc/self/status")
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        for number, handler in zip(ignored, previous, strict=True):
            signal.signal(number, handler)
    wait_until(lambda: not child.alive, "the child ends")
    status = dict(line.split(":\t") for line in log.read_text().splitlines() if line.startswith("Sig"))
    assert int(status["SigBlk"], 16) == 0
    assert int(status["SigIgn"], 16) == 0


@pytest.mark.parametrize(("command", "code"), [("no-such-command", 127), ("/", 126)])
def test_a_command_that_cannot_run_ends_as_in_a_shell(
    launch: Callable[..., Child], command: str, code: int
) -> None:
    child = launch(command, env={"PATH": "/usr/bin:/bin"})
    wait_until(lambda: not child.alive, "the child ends")
    assert child.exit_code == code
    assert f"cannot run {command}: " in child.tail()


def test_an_end_is_noticed_even_where_children_are_reaped_by_the_system(launch: Callable[..., Child]) -> None:
    previous = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        child = launch("true")
        wait_until(lambda: not child.alive, "the child ends")
    finally:
        signal.signal(signal.SIGCHLD, previous)


SUPERVISOR = """
import signal, sys
from pathlib import Path
from clipfleet_worker.machine.supervise import Child
child = Child("child", ["sleep", "1000"], log=Path(sys.argv[1]))
child.start()
print(child.pid, flush=True)
signal.pause()
"""


def test_a_child_dies_with_a_supervisor_that_is_killed(log: Path) -> None:
    argv = [sys.executable, "-c", SUPERVISOR, str(log)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as supervisor:
        pid = int(supervisor.stdout.readline())
        assert not is_gone(pid)
        supervisor.kill()
    wait_until(lambda: is_gone(pid), "the child is gone")


def test_a_child_whose_supervisor_died_before_it_could_say_so_does_not_start() -> None:
    argv = [sys.executable, "-IS", exec_child.__file__, "1", "echo", "started"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "")


# --- Signals ----------------------------------------------------------------------------------------------


def test_signals_are_noted_in_order_and_handlers_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with SignalRecorder() as signals:
        assert not signals.pending
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.pending
        assert signals.take() == [signal.SIGINT, signal.SIGTERM]
        assert signals.take() == []
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with SignalRecorder() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not signals.pending
    finally:
        signal.signal(signal.SIGHUP, previous)
