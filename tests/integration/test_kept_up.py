"""An `up` in the background, with a real Valkey and a stand-in for the worker."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipfleet_worker.machine.up_folder import RunningUp, UpFolder
from tests.support.processes import is_gone
from tests.support.up_site import Site
from tests.support.waiting import wait_until

SHOW = ("sh", "-c", 'echo "$CLIPFLEET_REDIS_URL|$_CLIPFLEET_UP"')


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    if (up := running(made)) is not None:
        os.kill(up.pid, signal.SIGKILL)
    made.clean_up()


def running(site: Site) -> RunningUp | None:
    return UpFolder(site.directory).running()


def test_of_two_that_start_at_once_one_serves_both(site: Site) -> None:
    both = [site.start(*SHOW, keep=True) for _ in range(2)]

    # The command does not run under an `up` that ends with it
    assert [process.communicate(timeout=60)[0] for process in both] == [f"{site.url}|\n"] * 2

    assert [process.returncode for process in both] == [0, 0]
    assert len(site.worker_pids()) == 1
    assert site.start(*SHOW, keep=True, CLIPFLEET_REDIS_URL=site.url).wait(60) == 0  # a sourced `env`
    assert "Stopped. " in site.stop()
    site.check_nothing_runs()


def test_a_command_of_its_own_up_knows_how_to_start_it_again(site: Site) -> None:
    process = site.start(*SHOW)
    shown = process.communicate(timeout=60)[0]
    assert shown == f"{site.url}|{process.pid} clipfleet-worker up\n"
    assert "Ctrl-C" not in site.said


def test_one_that_cannot_start_says_why(site: Site) -> None:
    assert site.run("echo", "never", worker="broken", keep=True) == (1, "")
    assert "`up` ended during its start" in site.said and "no such model" in site.said
    assert running(site) is None


def test_one_that_was_killed_leaves_nothing_in_the_way(site: Site) -> None:
    assert site.start("true", keep=True).wait(60) == 0
    killed = running(site)
    assert killed is not None
    os.kill(killed.pid, signal.SIGKILL)
    wait_until(lambda: is_gone(killed.pid), "it is gone")

    assert site.stop() == f"nothing runs on {site.directory}\n"
    site.check_nothing_runs()

    assert site.start("true", keep=True).wait(60) == 0
    assert running(site) not in (None, killed)


def test_a_ctrl_c_while_it_stops_kills_a_stuck_worker(site: Site) -> None:
    assert site.start("true", worker="stuck", keep=True).wait(60) == 0
    stopping = site.start_to_stop()
    assert stopping.stdout is not None
    assert stopping.stdout.readline() == "Finishing the work in progress. Press Ctrl-C to stop at once\n"
    stopping.send_signal(signal.SIGINT)
    assert stopping.stdout.read().startswith("Stopped. ")
    site.check_nothing_runs()


def test_a_second_signal_leaves_a_stop_whose_up_is_frozen(site: Site) -> None:
    assert site.start("true", worker=None, keep=True).wait(60) == 0
    up = running(site)
    assert up is not None
    os.kill(up.pid, signal.SIGSTOP)
    stopping = site.start_to_stop()
    assert stopping.stdout is not None
    assert stopping.stdout.readline().startswith("Finishing the work in progress")
    stopping.send_signal(signal.SIGINT)
    stopping.send_signal(signal.SIGTERM)
    assert stopping.wait(60) == 128 + signal.SIGTERM
    assert stopping.stdout.read() == f"`up` (pid {up.pid}) still runs on {site.directory}\n"

    os.kill(up.pid, signal.SIGCONT)
    site.check_nothing_runs()


def test_a_stop_leaves_an_up_with_a_command_alone(site: Site) -> None:
    process = site.start("sh", "-c", "echo ready; exec sleep 1000", worker=None)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"

    stopping = site.start_to_stop()

    said, _ = stopping.communicate(timeout=60)
    assert stopping.returncode == 2
    assert f"already runs on it (pid {process.pid}); wait for the end of its command" in said
    assert process.poll() is None


@pytest.mark.parametrize(
    ("noted", "problem"),
    [
        (
            {"host": "elsewhere", "pid_space": "its own"},
            "`up` runs on elsewhere; stop it there, or give another",
        ),
        ({"started": "1"}, "`up` already runs on it"),
    ],
)
def test_a_stop_leaves_a_process_alone_that_has_the_pid_only(
    site: Site, noted: dict[str, str], problem: str
) -> None:
    """That of an `up` on another machine, and one that has got the pid of an `up` that has ended."""
    folder = UpFolder(site.directory)
    folder.make()
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        up = RunningUp.this_process(has_command=False).model_copy(update={"pid": stranger.pid, **noted})
        try:
            with folder.held(up):
                stopping = site.start_to_stop()
                said, _ = stopping.communicate(timeout=60)
                command = site.start("echo", "never", worker=None)
                assert command.communicate(timeout=60)[0] == ""
            assert (stopping.returncode, stranger.poll()) == (2, None)
            assert problem in said and problem in site.said
        finally:
            stranger.kill()


def test_after_a_command_only_a_long_drain_is_announced(site: Site) -> None:
    process = site.start("true", worker="stuck")
    site.wait_said("Finishing the work in progress. Press Ctrl-C to stop at once\n")
    process.send_signal(signal.SIGINT)
    site.check_ends(process)


def test_a_shell_with_another_redis_is_not_given_this_one(site: Site) -> None:
    assert site.start("true", worker=None, keep=True).wait(60) == 0
    assert site.start("true", worker=None, CLIPFLEET_REDIS_URL="redis://:secret@h/0").wait(60) == 2
    assert "CLIPFLEET_REDIS_URL is redis://***@h/0, but the `up` that runs on" in site.said
