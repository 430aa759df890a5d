"""The end of a job is sent to a Celery task of the user."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clipfleet.client import Client, JobOptions
from tests.support.cluster import Cluster
from tests.support.images import write_images
from tests.support.waiting import wait_until

MODULE = """\
import json
import os

from celery import Celery

app = Celery("myapp", broker=os.environ.get("CLIPFLEET_BROKER_URL", os.environ["CLIPFLEET_REDIS_URL"]))


@app.task(name="myapp.tasks.handle", bind=True)
def handle(self, event):
    with open("received.jsonl", "a") as file:
        file.write(json.dumps({"id": self.request.id, **event}) + "\\n")
"""


@pytest.fixture
def received(cluster: Cluster, tmp_path: Path) -> Iterator[Path]:
    """The file in which a plain Celery worker records its events; it does not import clipfleet."""
    package = tmp_path / "myapp"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "tasks.py").write_text(MODULE)
    with (tmp_path / "celery.log").open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "myapp.tasks", "worker", "--pool", "solo", "--loglevel",
             "INFO", "--without-gossip", "--without-mingle"],
            cwd=tmp_path, env=cluster.environment(), stdout=log, stderr=log,
        )  # fmt: skip
    yield tmp_path / "received.jsonl"
    worker.terminate()
    try:
        assert worker.wait(60) == 0
    finally:
        worker.kill()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_task_of_the_user_is_sent(cluster: Cluster, client: Client, folder: Path, received: Path) -> None:
    write_images(folder / "images", 3)
    (folder / "images" / "broken.jpg").write_bytes(b"no picture")
    options = JobOptions(output=folder / "out", model="demo", on_finished="myapp.tasks.handle")
    done = client.embed(folder / "images", options=options)
    changes = {"output": str(folder / "never"), "model": "nobody:serves"}
    cancelled = client.embed(folder / "images", options=options.model_copy(update=changes))
    cancelled.cancel()
    in_redis = client.embed_text(["a cat"], options=options.model_copy(update={"output": "redis://"}))

    wait_until(lambda: len(lines(received)) >= 3, "all ends have arrived")

    by_job = {event["job_id"]: event for event in lines(received)}
    assert by_job[done.job_id] == {
        "id": by_job[done.job_id]["id"], "job_id": done.job_id, "generation": 0,
        "state": "completed_with_errors", "total": 4, "ok": 3, "failed": 1, "output": str(folder / "out"),
        "reason": "",
    }  # fmt: skip
    assert by_job[cancelled.job_id]["state"] == "cancelled"
    of_redis = by_job[in_redis.job_id]
    assert (of_redis["state"], of_redis["output"]) == ("completed", in_redis.output)

    (folder / "images" / "broken.jpg").write_bytes((folder / "images" / "000000.jpg").read_bytes())
    cluster.run_json("retry", done.job_id)
    wait_until(lambda: len(lines(received)) >= 4, "the end of the retry has arrived")
    last = lines(received)[-1]
    assert (last["generation"], last["state"], last["ok"]) == (1, "completed", 4)
    assert len({event["id"] for event in lines(received)}) == 4
