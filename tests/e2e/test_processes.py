"""`clipfleet-worker run` with several processes: they share a job, one is killed, all drain."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, WorkerProcess
from tests.support.images import write_images
from tests.support.waiting import wait_until

TWO = ("clipfleet_worker", "run", "--devices", "cpu", "--processes-per-device", "2")
IMAGES = 60


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    settings = {"CLIPFLEET_SLOTS": "1", "CLIPFLEET_LEASE_SECONDS": "3", "CLIPFLEET_RECONCILE_SECONDS": "0.5"}
    with Cluster(tmp_path, settings) as cluster:
        write_images(tmp_path / "images", IMAGES)
        yield cluster


def pids(parent: WorkerProcess, name: str) -> list[int]:
    """Process ids of all lives of a process, from the parent's log."""
    return [int(pid) for pid in re.findall(rf"worker {name} has pid (\d+)", parent.log())]


def lines(parent: WorkerProcess, name: str, action: str) -> int:
    """How often a process has logged an action."""
    return sum(f" {name} INFO " in line and f"action={action}" in line for line in parent.log().splitlines())


def test_two_processes_share_a_job_and_one_is_killed(cluster: Cluster) -> None:
    parent = cluster.start_worker(program=TWO)  # ready: both are

    def embed(name: str) -> int:
        job = cluster.embed(cluster.folder / "images", cluster.folder / name, chunk_size=2)
        return job.wait(120).ok

    assert embed("first") == IMAGES
    shares = [lines(parent, name, "chunk_completed") for name in ("cpu/0", "cpu/1")]
    assert sum(shares) == IMAGES // 2
    assert min(shares) > 0, shares

    (killed,) = pids(parent, "cpu/0")
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: lines(parent, "cpu/0", "worker_ready") == 2, "it is back", 120)
    assert embed("second") == IMAGES
    assert lines(parent, "cpu/1", "worker_ready") == 1
    assert parent.terminate() == 0, parent.log()
    assert "draining all workers" in parent.log()
