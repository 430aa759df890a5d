"""Flower, as it is, shows the workers and their tasks where CLIPFLEET_CELERY_EVENTS is set."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from clipfleet.ledger import keys
from clipfleet_worker.machine.embedded.server import free_port
from tests.support.cluster import Cluster
from tests.support.images import write_images
from tests.support.waiting import wait_until


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, {"CLIPFLEET_CELERY_EVENTS": "true"}) as running:
        yield running


@pytest.fixture
def flower(cluster: Cluster) -> Iterator[str]:
    port = free_port()
    broker = cluster.environment().get("CLIPFLEET_BROKER_URL", cluster.server.url)
    command = [sys.executable, "-m", "celery", "--broker", broker, "flower", "--address=127.0.0.1"]
    environment = {**cluster.environment(), "FLOWER_UNAUTHENTICATED_API": "true"}
    process = subprocess.Popen([*command, f"--port={port}"], env=environment, cwd=cluster.folder)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    try:
        process.wait(60)
    finally:
        process.kill()


def asked(url: str) -> Any:
    try:
        with urlopen(url, timeout=60) as answer:  # noqa: S310 - our own Flower
            return json.load(answer)
    except (HTTPError, OSError):
        return {}


def test_it_shows_the_worker_and_what_it_did(cluster: Cluster, flower: str) -> None:
    wait_until(lambda: asked(f"{flower}/api/tasks") == {} and is_up(flower), "Flower answers")
    cluster.start_worker()
    write_images(cluster.folder / "images", 20)
    job = cluster.embed(cluster.folder / "images", cluster.folder / "results", chunk_size=5)
    assert job.wait(120).ok == 20

    def done() -> list[dict[str, Any]]:
        tasks = asked(f"{flower}/api/tasks").values()
        return [task for task in tasks if task["name"] == keys.WORK_TASK and task["state"] == "SUCCESS"]

    wait_until(lambda: len(done()) >= 4, "Flower has seen the chunks' tasks succeed")
    workers = wait_until(lambda: asked(f"{flower}/api/workers?refresh=true"), "Flower has asked the worker")
    (name,) = workers
    assert name.startswith("clipfleet@")
    assert [queue["name"] for queue in workers[name]["active_queues"]] == [keys.QUEUE]
    assert {task["worker"] for task in done()} == {name}


def is_up(flower: str) -> bool:
    try:
        with urlopen(f"{flower}/healthcheck", timeout=60) as answer:  # noqa: S310 - our own Flower
            return bool(answer.status == 200)
    except OSError:
        return False
