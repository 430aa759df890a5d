"""Jobs of several models: each finds the workers that serve it, or says what is missing."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow.parquet as pq
import pytest

from clipfleet.contract.jobs import DEFAULT_MODEL
from tests.support.cluster import Cluster
from tests.support.images import write_images
from tests.support.second_model import write_second_model

_IMAGES = 24


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """No worker yet; images, a model of 48 dimensions in `mine`, nothing in the hub's cache."""
    folder = tmp_path_factory.mktemp("several-models")
    write_images(folder / "images", _IMAGES)
    write_second_model(folder / "mine")
    with Cluster(folder, {"HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}) as cluster:
        yield cluster


def test_a_job_waits_for_a_worker_that_serves_its_model(cluster: Cluster) -> None:
    full_name = f"local-dir:{cluster.folder / 'mine'}"
    cluster.start_worker({"CLIPFLEET_MODELS": "demo"})
    embed = ("embed", "images", "--chunk-size", "8")

    waiting = cluster.run_json(*embed, "--model", "./mine", "--output", "of-mine", "--no-wait")
    cluster.run_json(*embed, "--model", "demo", "--output", "of-demo")
    said = cluster.run("status", waiting["job_id"])

    assert {len(row["embedding"]) for row in cluster.rows("of-demo")} == {128}
    assert cluster.run_json("status", waiting["job_id"])["state"] == "running"
    assert f"no connected worker serves {full_name} (they serve: demo)" in said.stderr
    assert f"`clipfleet-worker run --models {full_name}`" in said.stderr

    cluster.start_worker({"CLIPFLEET_MODELS": f"./mine,{DEFAULT_MODEL}"})
    assert cluster.run("watch", waiting["job_id"]).returncode == 0

    rows = cluster.rows("of-mine")
    assert [len(row["embedding"]) for row in rows] == [48] * _IMAGES
    fingerprints = {row["model_fingerprint"] for row in (*rows, *cluster.rows("of-demo"))}
    assert len(fingerprints) == 2


def test_a_missing_model_is_reported_in_every_row(cluster: Cluster) -> None:
    cluster.run_json("embed", "images", "--model", DEFAULT_MODEL, "--output", "of-default", expect=3)

    rows = cluster.rows("of-default")
    assert [row["error_code"] for row in rows] == ["model_unavailable"] * _IMAGES
    assert all(f"`clipfleet-worker models pull {DEFAULT_MODEL}`" in row["error_detail"] for row in rows)
    schema = pq.read_schema(cluster.folder / "of-default" / "data" / "part-00000000.parquet")
    assert schema.field("embedding").type.list_size == 512


def test_one_worker_serves_jobs_of_two_models_with_room_for_one(cluster: Cluster) -> None:
    cluster.stop_workers()
    worker = cluster.start_worker({"CLIPFLEET_MODELS": "demo,./mine", "CLIPFLEET_LOADED_MODELS": "1"})
    embed = ("embed", "images", "--chunk-size", "4")

    job = cluster.run_json(*embed, "--model", "./mine", "--output", "first", "--no-wait")
    cluster.run_json(*embed, "--model", "demo", "--output", "second")
    assert cluster.run("watch", job["job_id"]).returncode == 0

    found = [[len(row["embedding"]) for row in cluster.rows(name)] for name in ("first", "second")]
    assert found == [[48] * _IMAGES, [128] * _IMAGES]
    assert "Traceback" not in worker.log()


def test_a_worker_of_a_folder_that_is_not_there_does_not_start(cluster: Cluster) -> None:
    worker = cluster.launch_worker({"CLIPFLEET_MODELS": "demo,./nowhere"})

    assert worker.process.wait(120) == 2
    (line,) = worker.log().splitlines()
    assert line.startswith("error: model ") and "there is no folder" in line
