"""The parent of several workers; the workers are tiny programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.documents import ROOT
from tests.support.processes import is_gone
from tests.support.waiting import wait_until

# The parent: PROGRAM FOLDER; two shares.
PARENT = """
import os, sys
from clipfleet_worker.process.logs import log_to_stderr
from clipfleet_worker.machine.plan import Machine, plan_processes
from clipfleet_worker.machine.processes import Processes
log_to_stderr("parent")
shares = plan_processes("cpu", "2", Machine((), 2, 1 << 30))
program = (sys.executable, "-c", sys.argv[1], sys.argv[2])
sys.exit(Processes(shares, stop_seconds=2, environment=os.environ, program=program).run())
"""
# A worker: notes its pid under its name, makes its ready file, and ends by SIGTERM with the code in `code`.
WORKER = """
import os, pathlib, signal, sys
folder, name = pathlib.Path(sys.argv[1]), sys.argv[3].replace("/", "-")
def end(*_):
    (folder / f"{name}.drained").touch()
    os._exit(int((folder / "code").read_text()))
signal.signal(signal.SIGTERM, end)
with (folder / f"{name}.pids").open("a") as file:
    file.write(f"{os.getpid()}\\n")
pathlib.Path(os.environ["CLIPFLEET_READY_FILE"]).touch()
while True:
    signal.pause()
"""
STUBBORN = WORKER.replace('os._exit(int((folder / "code").read_text()))', "pass")
STARTING = WORKER.replace("signal.signal(signal.SIGTERM, end)", "")  # as while Python imports what it needs
USELESS = "import sys; sys.exit(2)"


class Run:
    def __init__(self, folder: Path, worker: str) -> None:
        self.folder = folder
        (folder / "code").write_text("0")
        path = os.pathsep.join(str(ROOT / part) for part in ("producer", "worker"))
        environment = {**os.environ, "CLIPFLEET_READY_FILE": str(folder / "ready"), "PYTHONPATH": path}
        argv = [sys.executable, "-c", PARENT, worker, str(folder)]
        self.process = subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True)

    def pids(self, number: int) -> list[int]:
        """Of all lives of a worker."""
        file = self.folder / f"cpu-{number}.pids"
        return [int(line) for line in file.read_text().splitlines()] if file.exists() else []

    def wait_ready(self) -> None:
        wait_until((self.folder / "ready").exists, "all are ready")

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        _, log = self.process.communicate(timeout=60)
        return self.process.returncode, log


@pytest.fixture
def start(tmp_path: Path) -> Iterator[type[Run]]:
    runs: list[Run] = []

    def new(worker: str = WORKER) -> Run:
        runs.append(Run(tmp_path, worker))
        return runs[-1]

    yield new  # type: ignore[misc]
    for run in runs:
        run.process.kill()
        run.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP])
def test_a_signal_drains_all(start: type[Run], tmp_path: Path, number: signal.Signals) -> None:
    run = start()
    run.wait_ready()

    code, log = run.end(number)

    assert code == 0, log
    assert {file.name for file in tmp_path.glob("*.drained")} == {"cpu-0.drained", "cpu-1.drained"}
    assert "parent INFO" in log


def test_one_that_dies_is_started_again_and_the_others_stay(start: type[Run]) -> None:
    run = start()
    run.wait_ready()
    (killed,), (other,) = run.pids(0), run.pids(1)

    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: len(run.pids(0)) == 2, "it has a second life")

    code, log = run.end()
    assert (code, run.pids(1)) == (0, [other])
    assert "worker cpu/0 ended (killed by SIGKILL), restarting it in 0.5 s" in log


@pytest.mark.parametrize(("worker", "code"), [(WORKER, 70), (STARTING, 0)])
def test_the_exit_code_is_that_of_one_that_did_not_drain_unless_it_was_still_starting(
    start: type[Run], worker: str, code: int
) -> None:
    run = start(worker)
    run.wait_ready()
    (run.folder / "code").write_text("70")

    assert run.end()[0] == code


def test_one_that_does_not_end_is_killed(start: type[Run]) -> None:
    run = start(STUBBORN)
    run.wait_ready()

    code, log = run.end()

    assert code == 128 + signal.SIGKILL
    assert "worker cpu/0 does not end, killing it" in log
    assert all(is_gone(pid) for number in (0, 1) for pid in run.pids(number))


def test_settings_that_cannot_be_used_end_all(start: type[Run]) -> None:
    run = start(USELESS)

    _, log = run.process.communicate(timeout=60)

    assert run.process.returncode == 2
    assert "rejects its settings" in log
    assert "restarting it" not in log
