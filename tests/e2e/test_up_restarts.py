"""`up` starts its worker again: after a kill -9, and after the watchdog has ended it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from clipfleet.client import Client, JobOptions
from clipfleet.settings import Settings
from clipfleet_worker.process.watchdog import EXIT_HUNG
from tests.support.documents import ROOT
from tests.support.images import write_images
from tests.support.waiting import wait_until

pytestmark = pytest.mark.one_broker


@dataclass(frozen=True)
class RunningUp:
    folder: Path
    process: subprocess.Popen[bytes]

    def said(self) -> str:
        return (self.folder / "up.log").read_text(errors="replace")

    def waits_for(self, text: str, times: int = 1) -> None:
        wait_until(
            lambda: self.said().count(text) >= times or self.process.poll() is not None,
            f"`up` says {text!r}", 120,
        )  # fmt: skip
        assert self.process.poll() is None, self.said()

    def redis_url(self) -> str:
        script = (self.folder / "service" / "env").read_text()
        found = re.search(r"CLIPFLEET_REDIS_URL=(\S+)", script)
        assert found
        return shlex.split(found[1])[0]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningUp]:
    """Its worker hangs where the first part is written, until the watchdog ends it after a second."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CLIPFLEET_")}
    settings = {
        "CLIPFLEET_MODELS": "demo", "CLIPFLEET_LEASE_SECONDS": "2", "CLIPFLEET_RECONCILE_SECONDS": "0.5",
        "CLIPFLEET_FILE_ROOTS": str(tmp_path), "CLIPFLEET_OUTPUT_ROOTS": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    worker = ["tests.support.altered_worker", "mid_write", "hang", str(tmp_path / "there"), "1"]
    with (tmp_path / "up.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.up_with", str(tmp_path / "service"), *worker],
            env=clean | settings, cwd=ROOT, stdout=log, stderr=log,
        )  # fmt: skip
    yield RunningUp(tmp_path, process)
    if process.poll() is None:
        process.terminate()
        process.wait(90)


def test_after_a_kill_and_after_the_watchdog(running: RunningUp) -> None:
    write_images(running.folder / "images", 20)
    running.waits_for("Press Ctrl-C to stop it.")  # the last line of those that tell where everything is
    pid = re.search(r"worker +pid (\d+)", running.said())
    assert pid, running.said()
    os.kill(int(pid[1]), 9)
    running.waits_for("worker ended (killed by SIGKILL), restarting it")
    running.waits_for("worker is back")

    with Client(Settings(redis_url=running.redis_url())) as client:
        options = JobOptions(output=running.folder / "out", model="demo", chunk_size=5)
        job = client.embed(running.folder / "images", options=options)
        running.waits_for(f"worker ended (exit code {EXIT_HUNG}), restarting it")
        running.waits_for("worker is back", times=2)
        status = job.wait(120)
        assert (status.state, status.ok) == ("completed", 20), running.said()
        assert [row["item_index"] for row in job.results()] == list(range(20))
    running.process.terminate()
    assert running.process.wait(90) == 0, running.said()
