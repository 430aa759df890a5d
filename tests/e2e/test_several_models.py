"""Jobs of several models: each finds the workers that serve it, or says what is missing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clipfleet.contract.jobs import DEFAULT_MODEL
from tests.support.cluster import Cluster
from tests.support.images import write_images

_IMAGES = 24


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """No worker yet; images, a model of 48 dimensions in `mine`, nothing in the hub's cache."""
    import open_clip  # not by every process that collects the tests: it takes seconds
    import safetensors.torch

    folder = tmp_path_factory.mktemp("several-models")
    write_images(folder / "images", _IMAGES)
    (folder / "mine").mkdir()
    config = json.loads((files("clipfleet_worker") / "demo_model" / "open_clip_config.json").read_text())
    config["model_cfg"]["embed_dim"] = 48
    weights = open_clip.CLIP(**config["model_cfg"]).state_dict()
    safetensors.torch.save_file(weights, folder / "mine" / "open_clip_model.safetensors")
    (folder / "mine" / "open_clip_config.json").write_text(json.dumps(config))
    with Cluster(folder, {"HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}) as cluster:
        yield cluster


def rows_of(answer: dict[str, Any]) -> list[dict[str, Any]]:
    parts = sorted(Path(answer["output"]).glob("part-*.parquet"))
    return [row for part in parts for row in pq.ParquetFile(part).read().to_pylist()]


def test_a_job_waits_for_a_worker_that_serves_its_model(cluster: Cluster) -> None:
    full_name = f"local-dir:{cluster.folder / 'mine'}"
    cluster.start_worker({"CLIPFLEET_MODELS": "demo"})
    embed = ("embed", "images", "--chunk-size", "8")

    waiting = cluster.run_json(*embed, "--model", "./mine", "--output", "of-mine", "--no-wait")
    done = cluster.run_json(*embed, "--model", "demo", "--output", "of-demo")
    told = cluster.run("status", waiting["job_id"])

    assert {len(row["embedding"]) for row in rows_of(done)} == {128}
    assert cluster.run_json("status", waiting["job_id"])["state"] == "running"
    assert f"no connected worker serves {full_name} (they serve: demo)" in told.stderr
    assert f"`clipfleet-worker run --models {full_name}`" in told.stderr

    cluster.start_worker({"CLIPFLEET_MODELS": f"./mine,{DEFAULT_MODEL}"})
    assert cluster.run("watch", waiting["job_id"]).returncode == 0

    rows = rows_of(waiting | {"output": str(cluster.folder / "of-mine")})
    assert len(rows) == _IMAGES
    assert {len(row["embedding"]) for row in rows} == {48}
    assert {row["model_fingerprint"] for row in rows}.isdisjoint(
        row["model_fingerprint"] for row in rows_of(done)
    )


def test_a_missing_model_is_reported_in_every_row(cluster: Cluster) -> None:
    answer = cluster.run_json("embed", "images", "--model", DEFAULT_MODEL, "--output", "of-default", expect=3)

    rows = rows_of(answer)
    assert [row["error_code"] for row in rows] == ["model_unavailable"] * _IMAGES
    assert {f"`clipfleet-worker models pull {DEFAULT_MODEL}`" in row["error_detail"] for row in rows} == {
        True
    }
    assert (
        pq.ParquetFile(Path(answer["output"]) / "part-00000000.parquet")
        .schema_arrow.field("embedding")
        .type.list_size
        == 512
    )


def test_one_worker_serves_jobs_of_two_models_with_room_for_one(cluster: Cluster) -> None:
    for worker in cluster.workers:
        worker.terminate()
    worker = cluster.start_worker({"CLIPFLEET_MODELS": "demo,./mine", "CLIPFLEET_LOADED_MODELS": "1"})
    embed = ("embed", "images", "--chunk-size", "4")

    job = cluster.run_json(*embed, "--model", "./mine", "--output", "first", "--no-wait")
    other = cluster.run_json(*embed, "--model", "demo", "--output", "second")
    assert cluster.run("watch", job["job_id"]).returncode == 0

    dimensions = [
        {len(row["embedding"]) for row in rows_of({"output": str(cluster.folder / name)})}
        for name in ("first", "second")
    ]
    assert dimensions == [{48}, {128}]
    assert other["ok"] == _IMAGES
    assert worker.terminate() == 0
    assert "Traceback" not in worker.log()


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ("ViT-B-23:openai", "open_clip knows no architecture 'ViT-B-23' (do you mean ViT-B-32"),
        ("demo,./nowhere", "there is no folder"),
    ],
)
def test_a_worker_of_a_model_that_never_was_does_not_start(cluster: Cluster, models: str, words: str) -> None:
    worker = cluster.launch_worker({"CLIPFLEET_MODELS": models})

    assert worker.process.wait(120) == 2
    (line,) = worker.log().splitlines()
    assert line.startswith("error: model ")
    assert words in line
