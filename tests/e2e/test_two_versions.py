"""Workers of schema N and N-1 side by side: both do jobs of N-1, jobs of N are left to N."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from clipfleet.contract.jobs import REDIS_OUTPUT
from clipfleet.contract.versions import FIRST_WITH_HEADS, FIRST_WITH_THRESHOLDS, SCHEMA_VERSION
from clipfleet.heads.files import write_head
from clipfleet.ledger import keys
from clipfleet.redis.connection import connect
from tests.support.cluster import Cluster, WorkerProcess, ends
from tests.support.documents import ROOT
from tests.support.heads import head_file
from tests.support.images import write_images
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long

OLDER, NEWER = SCHEMA_VERSION, SCHEMA_VERSION + 1
IMAGES = 60
CHUNKS = 30
DEMO_DIMENSION = 128


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    settings = {"CLIPFLEET_RECONCILE_SECONDS": "0.5", "CLIPFLEET_SLOTS": "4"}
    with Cluster(tmp_path_factory.mktemp("two-versions"), settings) as cluster:
        write_images(cluster.folder / "images", IMAGES)
        yield cluster


def start_worker(cluster: Cluster, version: int) -> WorkerProcess:
    return cluster.start_worker(program=("tests.support.versions", str(version), "worker"))


@pytest.fixture(scope="module")
def older(cluster: Cluster) -> WorkerProcess:
    return start_worker(cluster, OLDER)


def submit(cluster: Cluster, version: int, job_id: str, output: str) -> None:
    program = [sys.executable, "-m", "tests.support.versions", str(version), "submit"]
    submitted = subprocess.run(
        [*program, str(cluster.folder / "images"), output, job_id, str(IMAGES // CHUNKS)],
        env=cluster.environment(), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert submitted.returncode == 0, submitted.stderr


def completed_by(worker: WorkerProcess, job_id: str) -> int:
    lines = worker.log().splitlines()
    return sum("chunk_completed" in line and f"job_id={job_id} " in line for line in lines)


def is_exact(cluster: Cluster, job_id: str, version: int) -> None:
    with connect(cluster.server.url) as server:
        wait_until(lambda: ends(cluster, job_id), f"{job_id} ends", 120)
        facts: Any = server.hgetall(keys.job(job_id))
        spec: Any = server.get(keys.job(job_id, keys.SPEC))
    assert (facts["state"], facts["ok"], facts["failed"]) == ("completed", str(IMAGES), "0")
    assert json.loads(spec)["schema_version"] == version
    assert ends(cluster, job_id) == [("0", "completed")]


@pytest.mark.parametrize("kind", ["folder", "redis"])
def test_versions(cluster: Cluster, older: WorkerProcess, kind: str) -> None:
    def output(name: str) -> str:
        return REDIS_OUTPUT if kind == "redis" else str(cluster.folder / name)

    # Given only a worker of N-1, a job of N is left alone: no loss, no failure, no end, no busy loop
    new_job, old_job, both = (f"{name}-{kind}" for name in ("new", "old", "both"))
    submit(cluster, NEWER, new_job, output(new_job))
    wait_until(lambda: f"schema version {NEWER}" in older.log(), "the older worker has met it")
    submit(cluster, OLDER, old_job, output(old_job))  # it is not kept from its own
    is_exact(cluster, old_job, OLDER)
    with connect(cluster.server.url) as server:
        facts: Any = server.hgetall(keys.job(new_job))
        troubles: Any = server.hkeys(keys.job(new_job, keys.TROUBLES))
    assert (facts["state"], facts["done_chunks"]) == ("running", "0"), cluster.logs()
    assert [name for name in troubles if not name.endswith(":waits")] == []
    assert older.log().count(f"job {new_job}: the job has schema version") <= CHUNKS

    # When one of N comes, it does that job, and both do another one of N-1
    newer = start_worker(cluster, NEWER)
    try:
        is_exact(cluster, new_job, NEWER)
        assert (completed_by(newer, new_job), completed_by(older, new_job)) == (CHUNKS, 0)
        submit(cluster, OLDER, both, output(both))
        is_exact(cluster, both, OLDER)
        shares = completed_by(older, both), completed_by(newer, both)
        assert sum(shares) == CHUNKS
        assert min(shares) > 0, shares
        assert len(cluster.rows(both if kind == "redis" else output(both))) == IMAGES
    finally:
        assert newer.terminate() == 0


@pytest.fixture
def alone(cluster: Cluster) -> Cluster:
    """Without a worker."""
    for worker in cluster.living_workers():
        assert worker.terminate() == 0
    return cluster


def test_a_job_with_thresholds_is_left_alone_by_workers_that_know_none(alone: Cluster) -> None:
    # Given a worker of the version before thresholds, and no other
    cluster, older = alone, start_worker(alone, FIRST_WITH_THRESHOLDS - 1)
    images, softmax = cluster.folder / "images", ("--labels", "cat,dog", "--model", "demo", "--no-wait")
    accepting = cluster.run_json("classify", images, *softmax, "--none", "--job-id", "accepting")
    wait_until(lambda: f"schema version {FIRST_WITH_THRESHOLDS}" in older.log(), "it has met the job")
    cluster.run_json("classify", images, *softmax, "--job-id", "softmax")

    # Then it does those that it knows, and leaves that one to a worker of this version
    wait_until(lambda: ends(cluster, "softmax"), "the softmax ends", 120)
    assert (accepting["state"], cluster.status("accepting").done) == ("running", 0)
    start_worker(cluster, FIRST_WITH_THRESHOLDS)
    is_exact(cluster, "accepting", FIRST_WITH_THRESHOLDS)
    assert completed_by(older, "accepting") == 0
    assert all(row["accepted"] is not None for row in cluster.rows("accepting"))


@pytest.mark.parametrize("kind", ["folder", "redis"])
def test_a_job_with_heads_is_left_alone_by_workers_that_know_none(alone: Cluster, kind: str) -> None:
    # Given a worker of the version before heads, and no other
    cluster, older = alone, start_worker(alone, FIRST_WITH_HEADS - 1)
    images, demo = cluster.folder / "images", ("--model", "demo", "--no-wait")
    write_head(head_file(DEMO_DIMENSION, 2), cluster.folder / "taste.head.safetensors")
    job_id, plain = f"heads-{kind}", f"plain-{kind}"
    output = REDIS_OUTPUT if kind == "redis" else str(cluster.folder / job_id)
    with_head = cluster.run_json(
        "classify", images, "--head", cluster.folder / "taste.head.safetensors", "--job-id", job_id,
        "--output", output, *demo,
    )  # fmt: skip
    wait_until(lambda: f"schema version {FIRST_WITH_HEADS}" in older.log(), "it has met the job")
    cluster.run_json("classify", images, "--labels", "cat,dog", "--job-id", plain, *demo)

    # Then it does those that it knows, and leaves that one to a worker of this version
    wait_until(lambda: ends(cluster, plain), "the other job ends", 120)
    assert (with_head["state"], cluster.status(job_id).done) == ("running", 0)
    newer = start_worker(cluster, FIRST_WITH_HEADS)
    is_exact(cluster, job_id, FIRST_WITH_HEADS)
    assert (completed_by(older, job_id), completed_by(newer, job_id) > 0) == (0, True)
    rows = cluster.rows(job_id if kind == "redis" else output)
    assert all(row["head_taste"] in ("kind 0", "kind 1") and row["label"] is None for row in rows)
