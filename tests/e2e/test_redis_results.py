"""Results that stay in Redis, by the real command line and a real worker: no output is named anywhere."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipfleet.client import Client, JobOptions
from clipfleet.ledger import keys
from clipfleet.redis.connection import connect
from tests.support.cluster import Cluster, job_events
from tests.support.images import write_images

LABELS = "red apple,dog,car,house"


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    with Client(cluster.client_settings()) as client:
        yield client


@pytest.fixture
def folder(cluster: Cluster, tmp_path: Path) -> Path:
    """Ten images and a table of twelve rows: two are missing, ids repeat, columns are called like ours."""
    folder = cluster.folder / tmp_path.name
    write_images(folder / "images", 10)
    with (folder / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "path", "label", "shelf"])
        for number in range(12):
            writer.writerow([f"id-{number % 5}", f"images/{number:06d}.jpg", f"mine {number}", "ä"])
    return folder


def stdout_of(cluster: Cluster, *arguments: str | Path) -> str:
    result = cluster.run(*arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def rows_of(cluster: Cluster, job: str | Path) -> list[dict[str, Any]]:
    lines = stdout_of(cluster, "results", job, "--format", "jsonl").splitlines()
    return [json.loads(line) for line in lines]


def figures(row: dict[str, Any]) -> dict[str, Any]:
    """What is computed, in bf16: how many images share a batch decides the last bits of its sums."""
    names = ("score", "scores", "embedding")
    return {name: pytest.approx(row[name], rel=0, abs=2e-3) for name in names if row.get(name) is not None}


@pytest.mark.parametrize("task", ["classify", "embed"])
def test_the_rows_are_those_of_a_job_in_a_folder(cluster: Cluster, folder: Path, task: str) -> None:
    labels = ["--labels", LABELS] if task == "classify" else []
    command = (task, folder / "list.csv", *labels, "--model", "demo", "--chunk-size", "5")
    here = cluster.run_json(*command, expect=3)
    cluster.run_json(*command, "--output", folder / "out", expect=3)

    assert here["output"] == "redis://"
    assert (here["total"], here["ok"], here["failed"]) == (12, 10, 2)
    rows = rows_of(cluster, here["job_id"])
    for mine, other in zip(rows, rows_of(cluster, folder / "out"), strict=True):
        assert mine == {**other, **figures(other)}
    assert [row["item_index"] for row in rows] == list(range(12))
    assert [row["item_id"] for row in rows] == [f"id-{number % 5}" for number in range(12)]
    assert [row["error_code"] for row in rows[9:]] == [None, "not_found", "not_found"]
    assert rows[3]["source_label"] == "mine 3"
    assert len(job_events(cluster, here["job_id"])) == 1
    csv_rows = csv.DictReader(io.StringIO(stdout_of(cluster, "results", here["job_id"], "--format", "csv")))
    assert [row["source_label"] for row in csv_rows] == [f"mine {number}" for number in range(12)]
    assert stdout_of(cluster, "results", here["job_id"], "--limit", "3").count("id-") == 3
    assert not (folder / "clipfleet-output").exists()


def test_programs_find_rows_vectors_and_ids_by_their_keys(
    cluster: Cluster, folder: Path, client: Client
) -> None:
    job = client.embed(folder / "list.csv", options=JobOptions(model="demo", chunk_size=5))
    job.wait(120)
    index, vectors = job.vectors()

    with connect(cluster.server.url, decode=False) as server:
        first = server.hget(keys.job(job.job_id, keys.IDS), "id-3")
        row = json.loads(server.hget(keys.job(job.job_id, keys.ROWS), first))
        vector = np.frombuffer(server.hget(keys.job(job.job_id, keys.VECTORS), first), "<f2")
        ttls = {suffix: server.ttl(keys.job(job.job_id, suffix)) for suffix in keys.RESULT_SUFFIXES}

    assert (first, row["item_index"], row["uri"]) == (b"3", 3, str(folder / "images" / "000003.jpg"))
    assert np.array_equal(vector, vectors[index.tolist().index(3)])
    assert all(0 < ttl <= 7 * 86_400 for ttl in ttls.values())


def test_a_retry_turns_the_failed_rows_into_good_ones(cluster: Cluster, folder: Path, client: Client) -> None:
    here = cluster.run_json("embed", folder / "list.csv", "--model", "demo", "--chunk-size", "5", expect=3)
    before = rows_of(cluster, here["job_id"])
    write_images(folder / "images", 12)

    again = cluster.run_json("retry", here["job_id"])

    assert (again["state"], again["ok"], again["failed"]) == ("completed", 12, 0)
    rows = rows_of(cluster, here["job_id"])
    assert rows[:10] == before[:10]
    assert [row["status"] for row in rows] == ["ok"] * 12
    assert len(client.job(here["job_id"]).vectors()[0]) == 12
    assert [event["generation"] for event in job_events(cluster, here["job_id"])] == ["0", "1"]
