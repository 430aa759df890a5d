"""A worker process as its operator sees it: refusals at start, drain, defaults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cluster import Cluster
from tests.support.images import write_images
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long


def run_worker(**settings: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CLIPFLEET_")}
    return subprocess.run(
        [sys.executable, "-m", "clipfleet_worker", "run"],
        env=clean | settings,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


REDIS = {"CLIPFLEET_REDIS_URL": "redis://127.0.0.1:1/0"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, ["CLIPFLEET_REDIS_URL is not set"]),
        (REDIS | {"CLIPFLEET_MODELS": "ViT-B-32:no_such_weights"}, ["knows no weights 'no_such_weights'"]),
    ],
    ids=["no Redis", "an unknown model"],
)
def test_a_worker_that_cannot_start_names_the_reason(settings: dict[str, str], words: list[str]) -> None:
    result = run_worker(**settings)

    assert result.returncode == 2
    assert [word for word in words if word not in result.stderr] == [], result.stderr
    assert result.stderr.count("\n") == 1


def test_sigterm_drains_and_loses_nothing(tmp_path: Path) -> None:
    settings = {"CLIPFLEET_DRAIN_SECONDS": "1", "CLIPFLEET_RECONCILE_SECONDS": "1"}
    with Cluster(tmp_path, settings) as cluster:
        write_images(tmp_path / "images", 3000)
        worker = cluster.start_worker()
        job = cluster.embed(tmp_path / "images", tmp_path / "out", chunk_size=64)
        wait_until(lambda: job.status().done_chunks >= 2, "some chunks are done")

        assert worker.terminate() == 0, worker.log()

        assert cluster.client.workers() == []
        status = job.status()
        assert (status.leased_chunks, status.state.is_final) == (0, False)
        cluster.start_worker()
        status = job.wait(120)
        assert (status.state, status.ok) == ("completed", 3000), cluster.logs()
        assert [row["item_index"] for row in job.results()] == list(range(3000))


def test_a_worker_starts_before_its_server(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        write_images(tmp_path / "images", 3)
        cluster.server.stop()
        worker = cluster.launch_worker()
        wait_until(lambda: "heartbeat not recorded" in worker.log(), "the worker misses its server", 60)
        cluster.server.start()
        assert cluster.embed(tmp_path / "images", tmp_path / "out").wait(120).ok == 3


def test_without_roots_nothing_is_read_or_written(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        write_images(tmp_path / "images", 3)
        cluster.start_worker({"CLIPFLEET_FILE_ROOTS": ""})
        cluster.run_json("embed", "images", "--model", "demo", "--output", "out", expect=3)
        for row in cluster.rows("out"):
            assert row["error_code"] == "path_refused" and "CLIPFLEET_FILE_ROOTS" in row["error_detail"]
        cluster.stop_workers()
        cluster.start_worker({"CLIPFLEET_OUTPUT_ROOTS": ""})
        failed = cluster.run("embed", "images", "--model", "demo", "--output", "out2", "--json")
        assert (failed.returncode, json.loads(failed.stdout)["state"]) == (1, "failed")
        assert "CLIPFLEET_OUTPUT_ROOTS" in failed.stderr and "output_unreachable" in failed.stderr
