"""One child process, here a real, tiny one: its start, its readiness, its end and its log."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from clipfleet.errors import WorldError
from clipfleet_worker.machine.child import Child
from clipfleet_worker.process import exec_child
from tests.support.processes import is_gone
from tests.support.waiting import wait_until

Launch = Callable[..., Child]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "child.log"


@pytest.fixture
def launch(log: Path) -> Iterator[Launch]:
    children = []

    def new(*argv: str, log: Path | None = log, **options: object) -> Child:
        child = Child("child", argv, log=log, **options)
        children.append(child)
        child.start()
        return child

    yield new
    for child in children:
        child.kill()


def test_output_goes_to_a_private_log_whose_tail_is_that_of_the_last_start(launch: Launch, log: Path) -> None:
    child = launch("sh", "-c", "echo run $$; exit 3")
    first = child.pid
    wait_until(lambda: not child.alive, "the child ends")
    assert (child.exit_code, child.ending()) == (3, "exit code 3")
    child.start()
    wait_until(lambda: not child.alive, "the child ends again")

    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert log.read_text() == f"run {first}\nrun {child.pid}\n"
    assert child.tail() == f"run {child.pid}"


def test_readiness_is_waited_for(launch: Launch, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    child = launch("sh", "-c", f"touch '{ready}'; exec sleep 1000", is_ready=ready.exists)
    assert child.wait_ready()
    assert child.wait_ready(lambda: False) is False


def test_a_probe_that_cannot_connect_means_not_ready_yet(launch: Launch) -> None:
    assert not launch("sleep", "1000", is_ready=Mock(side_effect=ConnectionRefusedError)).probe()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo the disk is full; exit 4", r"(?s)ended during its start \(exit code 4\).*the disk is full"),
        ("exec sleep 1000", "was not ready in 1 s"),
    ],
)
def test_a_child_that_does_not_become_ready_is_reported(launch: Launch, script: str, message: str) -> None:
    with pytest.raises(WorldError, match=message):
        launch("sh", "-c", script, is_ready=lambda: False, ready_seconds=1).wait_ready()


def test_stop_is_gentle_first(launch: Launch) -> None:
    child = launch("sleep", "1000")
    assert child.stop()
    assert child.ending() == "killed by SIGTERM"
    assert child.stop()


IGNORES_TERM = "trap '' TERM; sleep 1000 & echo $! > '{pids}'; wait; wait"


@pytest.mark.parametrize("patience", [0, 1000])
def test_stop_kills_the_group_of_a_deaf_child(launch: Launch, tmp_path: Path, patience: int) -> None:
    pids = tmp_path / "pids"
    child = launch("sh", "-c", IGNORES_TERM.format(pids=pids), stop_seconds=patience)
    wait_until(lambda: pids.exists() and pids.read_text().strip(), "the child ignores SIGTERM")

    assert child.stop(hurry=lambda: patience > 0) is False
    assert child.ending() == "killed by SIGKILL"
    wait_until(lambda: is_gone(int(pids.read_text())), "the grandchild is gone")


def test_the_group_of_a_dead_child_is_killed(launch: Launch, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    child = launch("sh", "-c", f"sleep 1000 & echo $! > '{pids}'")
    wait_until(lambda: not child.alive, "the child ends")
    wait_until(lambda: is_gone(int(pids.read_text())), "the grandchild is gone")


def test_a_child_with_a_log_has_its_own_session_and_one_without_shares_ours(launch: Launch) -> None:
    apart, foreground = launch("sleep", "1000"), launch("sleep", "1000", log=None)
    assert os.getsid(apart.pid) == os.getpgid(apart.pid) == apart.pid
    assert os.getpgid(foreground.pid) == os.getpgrp()


def test_a_child_starts_with_default_signals(launch: Launch, log: Path) -> None:
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
def test_a_command_that_cannot_run_ends_as_in_a_shell(launch: Launch, command: str, code: int) -> None:
    child = launch(command, env={"PATH": "/usr/bin:/bin"})
    wait_until(lambda: not child.alive, "the child ends")
    assert child.exit_code == code
    assert f"cannot run {command}: " in child.tail()


def test_an_end_is_noticed_even_where_children_are_reaped_by_the_system(launch: Launch) -> None:
    previous = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        child = launch("true")
        wait_until(lambda: not child.alive, "the child ends")
    finally:
        signal.signal(signal.SIGCHLD, previous)


SUPERVISOR = """
import signal, sys
from pathlib import Path
from clipfleet_worker.machine.child import Child
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
