"""Results on a real S3 store: the real command line, a real worker, read back by us and by pyarrow."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from pyarrow.fs import S3FileSystem

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


def test_a_missing_bucket_and_an_empty_place_are_named(cluster: Cluster, s3: S3Bucket, images: Path) -> None:
    for arguments, code, words in (
        (
            ("embed", images, "--model", "demo", "--output", "s3://no-such-bucket-here/x"),
            1,
            "create the bucket",
        ),
        (("results", f"{s3.uri}/nothing"), 2, "no job has this output"),
    ):
        result = cluster.run(*arguments)
        assert (result.returncode, result.stdout) == (code, ""), result.stderr
        assert words in " ".join(result.stderr.split())
        assert str(arguments[-1]) in result.stderr
        assert "Traceback" not in result.stderr
