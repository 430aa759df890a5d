"""The whole path: the real command line, a real server, a real worker, the demo model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest

from clipfleet.contract.parts import PART_COLUMNS
from tests.support.cluster import Cluster, ends
from tests.support.images import write_images


@pytest.fixture
def folder(folder: Path) -> Path:
    """With nine images in it."""
    write_images(folder / "images" / "deep", 9)
    return folder


def test_classify_a_folder(cluster: Cluster, folder: Path) -> None:
    answer = cluster.run_json(
        "classify", folder / "images", "--labels", "red apple,dog,car,house", "--model", "demo",
        "--output", folder / "out", "--chunk-size", "4", "--top-k", "2",
    )  # fmt: skip

    assert [*answer] == [
        "job_id", "state", "total", "ok", "failed", "codes", "output", "seconds", "already_ended", "limit",
        "estimate",
    ]  # fmt: skip
    assert (answer["state"], answer["total"], answer["ok"], answer["failed"]) == ("completed", 9, 9, 0)
    assert not answer["already_ended"]
    rows = ds.dataset(sorted((folder / "out").glob("data/part-*.parquet"))).to_table().to_pylist()
    assert [(row["item_index"], row["item_id"]) for row in rows] == [
        (number, f"deep/{number:06d}.jpg") for number in range(9)
    ]
    for row in rows:
        assert list(row) == [name for name in PART_COLUMNS if name != "embedding"]
        assert [row["label"], row["score"]] == [row["labels"][0], row["scores"][0]]
        assert len(row["labels"]) == 2 and row["scores"][0] >= row["scores"][1] > 0
        assert (row["width"], row["height"]) == (96, 80)
        assert len(row["content_hash"]) == 64
    assert (folder / "out" / "_SUCCESS").exists()
    manifest = json.loads((folder / "out" / "_manifest.json").read_text())
    assert (manifest["total"], manifest["ok"], len(manifest["parts"])) == (9, 9, 3)
    assert (folder / "out" / "_errors.jsonl").read_text() == ""
    assert ends(cluster, answer["job_id"]) == [("0", "completed")]


def test_embed_gives_normalised_vectors(cluster: Cluster, folder: Path) -> None:
    job = cluster.embed(str(folder / "images" / "deep" / "*.jpg"), folder / "out", chunk_size=4)
    assert job.wait(120).ok == 9

    item_index, vectors = job.vectors()

    assert item_index.tolist() == list(range(9))
    assert (vectors.shape, vectors.dtype) == ((9, 128), np.float16)
    assert np.allclose(np.linalg.norm(vectors.astype(np.float32), axis=1), 1, atol=2e-3)
    assert {(row["label"], row["labels"]) for row in job.results()} == {(None, None)}


def test_a_second_job_into_the_same_output_is_refused(cluster: Cluster, folder: Path) -> None:
    arguments = ("embed", folder / "images", "--model", "demo", "--output", folder / "out")
    first = cluster.run_json(*arguments)

    refused = cluster.run(*arguments)

    assert refused.returncode == 2
    assert first["job_id"] in refused.stderr and "--overwrite" in refused.stderr
    second = cluster.run_json(*arguments, "--overwrite")
    assert (second["job_id"] != first["job_id"], second["ok"]) == (True, 9)


def test_commands_about_a_job(cluster: Cluster, folder: Path) -> None:
    answer = cluster.run_json("embed", folder / "images", "--model", "demo", "--output", folder / "out")
    job_id = answer["job_id"]

    assert cluster.run_json("status", job_id)["state"] == "completed"
    assert job_id in [job["job_id"] for job in cluster.run_json("jobs")["jobs"]]
    assert cluster.run_json("watch", job_id)["ok"] == 9
    for target in (job_id, folder / "out"):
        assert [row["item_index"] for row in cluster.rows(target)] == list(range(9))
    assert "000000.jpg" in cluster.run("results", job_id).stdout
    assert cluster.run("results", job_id, "--format", "csv").stdout.startswith(
        "item_index,item_id,uri,status"
    )


def test_a_cancelled_job_ends_with_code_4(cluster: Cluster, folder: Path) -> None:
    arguments = ("embed", folder / "images", "--model", "nobody:serves", "--output", folder / "out")
    job_id = cluster.run_json(*arguments, "--no-wait")["job_id"]
    assert "no connected worker serves nobody:serves" in cluster.run("status", job_id).stderr

    said = [cluster.run_json(word, job_id) for word in ("pause", "resume", "cancel", "cancel")]

    assert [(answer["job_id"], answer["state"], answer["changed"]) for answer in said] == [
        (job_id, "paused", True), (job_id, "running", True),
        (job_id, "cancelled", True), (job_id, "cancelled", False),
    ]  # fmt: skip
    assert cluster.run_json("watch", job_id, expect=4)["state"] == "cancelled"
