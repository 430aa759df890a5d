"""The whole path: the real command line, a real server, a real worker, the demo model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from clipfleet.client import Client, JobOptions
from clipfleet.contract.parts import PART_COLUMNS
from tests.support.cluster import Cluster, job_events
from tests.support.images import write_images

LABELS = "red apple,dog,car,house"


def test_classify_a_folder(cluster: Cluster, tmp_path: Path) -> None:
    folder = cluster.folder / tmp_path.name
    write_images(folder / "images" / "deep", 30)
    answer = cluster.run_json(
        "classify", folder / "images", "--labels", LABELS, "--model", "demo", "--output", folder / "out",
        "--chunk-size", "7", "--top-k", "2",
    )  # fmt: skip
    assert set(answer) == {
        "job_id", "state", "total", "ok", "failed", "output", "seconds", "already_ended", "limit",
    }  # fmt: skip
    assert not answer["already_ended"]
    assert (answer["state"], answer["total"], answer["ok"], answer["failed"]) == ("completed", 30, 30, 0)
    table = ds.dataset(sorted((folder / "out").glob("part-*.parquet"))).to_table().to_pylist()
    assert [row["item_index"] for row in table] == list(range(30))
    assert [row["item_id"] for row in table] == [f"deep/{number:06d}.jpg" for number in range(30)]
    for row in table:
        assert list(row) == list(PART_COLUMNS)
        assert row["label"] == row["labels"][0]
        assert row["score"] == row["scores"][0]
        assert len(row["labels"]) == 2
        assert row["scores"][0] >= row["scores"][1] > 0
        assert (row["width"], row["height"]) == (96, 80)
        assert len(row["content_hash"]) == 64
        assert row["embedding"] is None
    assert (folder / "out" / "_SUCCESS").exists()
    manifest = json.loads((folder / "out" / "_manifest.json").read_text())
    assert (manifest["total"], manifest["ok"], len(manifest["parts"])) == (30, 30, 5)
    assert (folder / "out" / "errors.jsonl").read_text() == ""
    assert list((folder / "out" / "_clipfleet" / "tmp").iterdir()) == []
    assert len(job_events(cluster, answer["job_id"])) == 1


def test_embed_gives_normalised_vectors(cluster: Cluster, tmp_path: Path) -> None:
    folder = cluster.folder / tmp_path.name
    write_images(folder / "images", 9)
    options = JobOptions(output=folder / "out", model="demo", chunk_size=4)
    with Client(cluster.client_settings()) as client:
        job = client.embed(str(folder / "images" / "*.jpg"), options=options)
        assert job.wait(120).ok == 9
        rows = list(job.results())
        item_index, vectors = job.vectors()
    assert item_index.tolist() == list(range(9))
    assert vectors.shape == (9, 128)
    assert vectors.dtype == np.float16
    assert np.allclose(np.linalg.norm(vectors.astype(np.float32), axis=1), 1, atol=2e-3)
    assert all(row["label"] is None and row["labels"] is None for row in rows)
    schema = pq.read_schema(folder / "out" / "part-00000000.parquet")
    assert str(schema.field("embedding").type).startswith("fixed_size_list<") and "halffloat" in str(schema)


def test_a_second_job_into_the_same_output_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    folder = cluster.folder / tmp_path.name
    write_images(folder / "images", 3)
    arguments = ("embed", folder / "images", "--model", "demo", "--output", folder / "out")
    first = cluster.run_json(*arguments)
    refused = cluster.run(*arguments)
    assert refused.returncode == 2
    assert first["job_id"] in refused.stderr
    assert "--overwrite" in refused.stderr
    assert "Traceback" not in refused.stderr
    second = cluster.run_json(*arguments, "--overwrite")
    assert second["job_id"] != first["job_id"]
    assert second["ok"] == 3


def test_an_equal_job_id_returns_the_existing_job(cluster: Cluster, tmp_path: Path) -> None:
    folder = cluster.folder / tmp_path.name
    write_images(folder / "images", 3)
    arguments = ("embed", folder / "images", "--model", "demo", "--output", folder / "out")
    arguments = (*arguments, "--job-id", "nightly")
    assert cluster.run_json(*arguments)["ok"] == 3
    assert cluster.run_json(*arguments)["ok"] == 3
    assert len(job_events(cluster, "nightly")) == 1
    other = cluster.run(*arguments, "--decode", "exact")
    assert other.returncode == 2
    assert "decode" in other.stderr


def test_commands_about_a_job(cluster: Cluster, tmp_path: Path) -> None:
    folder = cluster.folder / tmp_path.name
    write_images(folder / "images", 5)
    answer = cluster.run_json("embed", folder / "images", "--model", "demo", "--output", folder / "out")
    job_id = answer["job_id"]
    assert cluster.run_json("status", job_id)["state"] == "completed"
    assert job_id in [job["job_id"] for job in cluster.run_json("jobs")["jobs"]]
    assert cluster.run_json("watch", job_id)["ok"] == 5
    for target in (job_id, folder / "out"):
        lines = cluster.run("results", target, "--format", "jsonl").stdout.splitlines()
        assert [json.loads(line)["item_index"] for line in lines] == list(range(5))
    assert "000000.jpg" in cluster.run("results", job_id).stdout
    assert cluster.run("results", job_id, "--format", "csv").stdout.startswith(
        "item_index,item_id,uri,status"
    )
    assert "already" in cluster.run("cancel", job_id).stderr


def test_a_cancelled_job_ends_with_code_4(cluster: Cluster, tmp_path: Path) -> None:
    folder = cluster.folder / tmp_path.name
    write_images(folder / "images", 3)
    submitted = cluster.run_json(
        "embed", folder / "images", "--model", "nobody:serves", "--output", folder / "out", "--no-wait"
    )
    assert submitted["state"] == "running"
    text = cluster.run("status", submitted["job_id"])
    assert "no connected worker serves nobody:serves" in text.stderr
    told = [cluster.run_json(word, submitted["job_id"]) for word in ("pause", "resume", "cancel", "cancel")]
    assert [(answer["job_id"], answer["state"], answer["changed"]) for answer in told] == [
        (submitted["job_id"], "paused", True),
        (submitted["job_id"], "running", True),
        (submitted["job_id"], "cancelled", True),
        (submitted["job_id"], "cancelled", False),
    ]
    assert cluster.run_json("watch", submitted["job_id"], expect=4)["state"] == "cancelled"
