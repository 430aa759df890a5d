"""Results on a real S3 store: the real command line, a real worker, read back by whoever can."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest
from pyarrow.fs import S3FileSystem

from clipfleet.client import Client, JobOptions
from tests.support.cluster import Cluster, job_events
from tests.support.images import write_images
from tests.support.s3 import S3Bucket

LABELS = "red apple,dog,car"
PREFIX = "nightly/läufe 2026"


@pytest.fixture
def images(cluster: Cluster, tmp_path: Path) -> Path:
    """Eleven images that the worker may read, and a list of them with one that is missing."""
    folder = cluster.folder / tmp_path.name
    names = [path.name for path in write_images(folder / "images", 11)]
    lines = "\n".join(f"images/{name},{number}" for number, name in enumerate([*names, "missing.jpg"]))
    (folder / "list.csv").write_text(f"path,shelf\n{lines}\n")
    return folder / "list.csv"


@pytest.fixture
def file_system(s3: S3Bucket) -> S3FileSystem:
    """pyarrow's own client, which shares nothing with ours."""
    return S3FileSystem(
        access_key=s3.environment["AWS_ACCESS_KEY_ID"],
        secret_key=s3.environment["AWS_SECRET_ACCESS_KEY"],
        endpoint_override=s3.endpoint,
        region="us-east-1",
    )


def test_classify_into_a_bucket(
    cluster: Cluster, s3: S3Bucket, images: Path, file_system: S3FileSystem
) -> None:
    output = f"{s3.uri}/{PREFIX}"
    job = ("classify", images, "--labels", LABELS, "--model", "demo", "--output", f"{output}/")

    answer = cluster.run_json(*job, "--chunk-size", "5", expect=3)

    assert (answer["output"], answer["state"]) == (output, "completed_with_errors")
    assert (answer["total"], answer["ok"], answer["failed"]) == (12, 11, 1)
    assert len(job_events(cluster, answer["job_id"])) == 1
    parts = [f"{PREFIX}/part-{number:08d}.parquet" for number in range(3)]
    assert s3.keys(f"{PREFIX}/part-") == parts
    assert json.loads(s3.get(f"{PREFIX}/_manifest.json"))["ok"] == 11
    assert json.loads(s3.get(f"{PREFIX}/errors.jsonl"))["error_code"] == "not_found"
    assert s3.get(f"{PREFIX}/_SUCCESS") == b""
    assert not s3.keys(f"{PREFIX}/_clipfleet/tmp")

    # Read back by us and by others
    printed = cluster.run("results", output, "--format", "jsonl")
    rows = [json.loads(line) for line in printed.stdout.splitlines()]
    found = ds.dataset([f"{s3.name}/{key}" for key in parts], filesystem=file_system).to_table()
    assert [row["item_index"] for row in rows] == found["item_index"].to_pylist() == list(range(12))
    assert [row["shelf"] for row in rows] == found["shelf"].to_pylist()
    assert [row["label"] for row in rows] == found["label"].to_pylist()
    assert [row["status"] for row in rows] == found["status"].to_pylist() == ["ok"] * 11 + ["failed"]

    # Then a second job into the same output
    refused = cluster.run(*job)
    assert refused.returncode == 2
    assert f"holds job {answer['job_id']}" in refused.stderr
    replaced = cluster.run_json(*job, "--overwrite", expect=3)
    assert replaced["job_id"] != answer["job_id"]
    assert s3.keys(f"{PREFIX}/part-") == parts[:1]


def test_embed_into_a_bucket_from_python(cluster: Cluster, s3: S3Bucket, images: Path) -> None:
    options = JobOptions(output=f"{s3.uri}/vectors", model="demo", chunk_size=4)
    with Client(cluster.client_settings()) as client:
        job = client.embed(images.parent / "images", options=options)
        assert job.wait(120).ok == 11
        rows = list(job.results())
        item_index, vectors = job.vectors()

    assert [row["item_index"] for row in rows] == item_index.tolist() == list(range(11))
    assert vectors.shape == (11, 128)
    assert np.allclose(np.linalg.norm(vectors.astype(np.float32), axis=1), 1, atol=2e-3)


class TestMistakes:
    @pytest.fixture
    def folder(self, images: Path) -> Iterator[Path]:
        yield images.parent / "images"

    def told(self, cluster: Cluster, folder: Path, output: str, code: int) -> str:
        """The one line on stderr of a submit that cannot be."""
        job = ("classify", folder, "--labels", LABELS, "--model", "demo", "--output", output)
        result = cluster.run(*job)
        assert (result.returncode, result.stdout) == (code, ""), result.stderr
        line: str = " ".join(result.stderr.split())
        assert "Traceback" not in line
        return line

    def test_a_bucket_that_is_not_there(self, cluster: Cluster, s3: S3Bucket, folder: Path) -> None:
        line = self.told(cluster, folder, "s3://no-such-bucket-here/x", 1)

        assert "s3://no-such-bucket-here/x" in line and "create the bucket" in line

    def test_a_uri_without_a_bucket(self, cluster: Cluster, s3: S3Bucket, folder: Path) -> None:
        assert "write s3://BUCKET/PATH" in self.told(cluster, folder, "s3:///x", 2)

    def test_results_of_an_empty_place(self, cluster: Cluster, s3: S3Bucket) -> None:
        result = cluster.run("results", f"{s3.uri}/nothing")

        assert result.returncode == 2
        assert "no job has this output" in " ".join(result.stderr.split())
