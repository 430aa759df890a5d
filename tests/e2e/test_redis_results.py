"""Results that stay in Redis, by the real command line and a real worker: no output is named anywhere."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipfleet.client import Client, JobOptions
from clipfleet.contract.jobs import MAX_ITEMS_IN_REDIS
from clipfleet.ledger import keys
from clipfleet.redis.connection import connect
from clipfleet.results.formats import ResultFormat, write
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


# Of bf16: how many images go through the model together decides how its sums are split. Those of one chunk
# always do; which chunks meet is chance.
ONE_CHUNK, SEVERAL_CHUNKS = 12, 5
LAST_BITS = {ONE_CHUNK: 0.0, SEVERAL_CHUNKS: 2e-3}


def rows_of(cluster: Cluster, job: str | Path) -> list[dict[str, Any]]:
    lines = stdout_of(cluster, "results", job, "--format", "jsonl").splitlines()
    return [json.loads(line) for line in lines]


def figures(row: dict[str, Any], difference: float) -> dict[str, Any]:
    """What is computed, equal to what differs by no more."""
    names = ("score", "scores", "embedding")
    return {
        name: pytest.approx(row[name], rel=0, abs=difference) for name in names if row.get(name) is not None
    }


@pytest.mark.parametrize("size", [ONE_CHUNK, SEVERAL_CHUNKS])
@pytest.mark.parametrize("task", ["classify", "embed"])
def test_the_rows_are_those_of_a_job_in_a_folder(
    cluster: Cluster, folder: Path, task: str, size: int
) -> None:
    labels = ["--labels", LABELS] if task == "classify" else []
    command = (task, folder / "list.csv", *labels, "--model", "demo", "--chunk-size", str(size))
    here = cluster.run_json(*command, expect=3)
    cluster.run_json(*command, "--output", folder / "out", expect=3)

    assert here["output"] == "redis://"
    assert (here["total"], here["ok"], here["failed"]) == (12, 10, 2)
    rows = rows_of(cluster, here["job_id"])
    for mine, other in zip(rows, rows_of(cluster, folder / "out"), strict=True):
        assert mine == {**other, **figures(other, LAST_BITS[size])}
    assert [row["item_index"] for row in rows] == list(range(12))
    assert [row["item_id"] for row in rows] == [f"id-{number % 5}" for number in range(12)]
    assert [row["error_code"] for row in rows[9:]] == [None, "not_found", "not_found"]
    assert rows[3]["source_label"] == "mine 3"
    assert len(job_events(cluster, here["job_id"])) == 1
    assert not (folder / "clipfleet-output").exists()


def test_every_format_has_every_row(cluster: Cluster, folder: Path, client: Client) -> None:
    job = client.embed(folder / "list.csv", options=JobOptions(model="demo", chunk_size=5))
    assert job.wait(120).ok == 10

    table = stdout_of(cluster, "results", job.job_id, "--limit", "3")
    assert table.count("id-") == 3
    assert "128 numbers" in table
    csv_rows = list(csv.DictReader(io.StringIO(stdout_of(cluster, "results", job.job_id, "--format", "csv"))))
    assert [row["source_label"] for row in csv_rows] == [f"mine {number}" for number in range(12)]
    with (folder / "rows.parquet").open("wb") as file:
        assert write(job.rows_reader(), ResultFormat.PARQUET, file) == 12
    parquet = pq.read_table(folder / "rows.parquet")
    assert parquet.schema.field("embedding").type == pa.list_(pa.float16(), 128)
    assert parquet["embedding"].null_count == 2
    assert parquet.to_pylist() == list(job.results())


def test_vectors_are_those_of_a_job_in_a_folder(folder: Path, client: Client) -> None:
    options = {"model": "demo", "chunk_size": ONE_CHUNK}
    here = client.embed(folder / "list.csv", options=JobOptions(**options))
    there = client.embed(folder / "list.csv", options=JobOptions(output=folder / "out", **options))
    here.wait(120)
    there.wait(120)

    for mine, expected in zip(here.vectors(), there.vectors(), strict=True):
        assert np.array_equal(mine, expected)
    assert len(here.vectors()[0]) == 10


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


def test_an_export_has_the_rows(cluster: Cluster, folder: Path) -> None:
    here = cluster.run_json("embed", folder / "list.csv", "--model", "demo", expect=3)

    counts = cluster.run_json(
        "export", here["job_id"], "--layout", "clip-retrieval", "--to", folder / "export"
    )

    assert (counts["rows"], counts["left_out"]) == (10, 2)
    assert np.load(folder / "export" / "img_emb" / "img_emb_0.npy").shape == (10, 128)


def test_the_end_tells_what_failed_and_how_to_see_the_rows(cluster: Cluster, folder: Path) -> None:
    result = cluster.run("embed", folder / "list.csv", "--model", "demo")

    assert result.returncode == 3
    assert "not_found: 2, for example: " in result.stderr
    job_id = result.stderr.partition("view the rows with `clipfleet results ")[2].partition("`")[0]
    assert len(rows_of(cluster, job_id)) == 12


def test_a_source_that_is_too_long_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "urls.txt").write_text("https://example.org/a.jpg\n" * (MAX_ITEMS_IN_REDIS + 1))

    result = cluster.run("embed", tmp_path / "urls.txt", "--model", "demo", "--job-id", "too-long")

    assert result.returncode == 2
    assert "more than 100,000 items" in result.stderr
    assert "give an --output" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    # Before anything was made of it, unless a second was too short to read so far: then it is undone.
    with connect(cluster.server.url) as server:
        assert server.hget(keys.job("too-long"), "state") in (None, "cancelled")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output", "redis://elsewhere:6379/0"], "the Redis of CLIPFLEET_REDIS_URL"),
        (["--format", "jsonl"], "which Redis does not have: give an --output"),
    ],
)
def test_what_redis_cannot_do_is_refused(
    cluster: Cluster, folder: Path, arguments: list[str], words: str
) -> None:
    result = cluster.run("embed", folder / "images", "--model", "demo", *arguments)

    assert result.returncode == 2
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_results_that_have_expired_say_so(cluster: Cluster, folder: Path, client: Client) -> None:
    job = client.embed(folder / "images", options=JobOptions(model="demo"))
    job.wait(120)
    with connect(cluster.server.url) as server:
        server.delete(*(keys.job(job.job_id, suffix) for suffix in keys.RESULT_SUFFIXES))

    result = cluster.run("results", job.job_id)

    assert result.returncode == 2
    assert f"the rows of job {job.job_id} have expired" in result.stderr
    assert "CLIPFLEET_RESULT_TTL_SECONDS" in result.stderr
