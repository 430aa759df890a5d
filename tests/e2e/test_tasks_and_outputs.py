"""Every task into every kind of output without a store of its own: the same rows are read back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipfleet.client import Client, JobHandle, JobOptions, JobSpec
from clipfleet.contract.jobs import PartFormat
from tests.support.cluster import Cluster
from tests.support.images import encoded, make_image

SETS = {"animals": ["cat", "dog", "fish"], "colours": ["red", "blue"]}
IMAGES = [encoded(make_image(seed)) for seed in range(5)]


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Iterator[Client]:
    with Client(cluster.client_settings()) as client:
        yield client


@pytest.fixture(params=["redis://", "parquet", "jsonl"])
def options(request: pytest.FixtureRequest, cluster: Cluster, tmp_path: Path) -> JobOptions:
    if request.param == "redis://":
        return JobOptions(output="redis://", model="demo", chunk_size=2)
    return JobOptions(
        output=cluster.folder / tmp_path.name / "out",
        model="demo",
        chunk_size=2,
        part_format=PartFormat(request.param),
    )


def finished(job: JobHandle, ok: int, failed: int = 0) -> list[dict[str, Any]]:
    status = job.wait(120)
    assert (status.ok, status.failed) == (ok, failed), job.job.output
    return list(job.results())


def test_several_label_sets_and_vectors(client: Client, options: JobOptions) -> None:
    both = options.model_copy(update={"store_embeddings": True})
    job = client.classify([*IMAGES[:3], b"no picture", *IMAGES[3:]], SETS, top_k=2, options=both)

    rows = finished(job, 5, 1)

    assert [row["status"] for row in rows] == ["ok"] * 3 + ["failed"] + ["ok"] * 2
    for row in rows:
        is_ok = row["status"] == "ok"
        assert (row["label_animals"] in SETS["animals"]) is is_ok
        assert (row["label_colours"] in SETS["colours"]) is is_ok
        assert row["label"] == row["label_animals"]
        assert (row["scores_colours"] is not None) is is_ok
    item_index, matrix = job.vectors()
    assert item_index.tolist() == [0, 1, 2, 4, 5]
    np.testing.assert_allclose(np.linalg.norm(matrix.astype(np.float64), axis=1), 1, atol=1e-2)


def test_a_label_set_for_each_item(client: Client, options: JobOptions) -> None:
    names = ["colours", "animals", "plants", None, "colours"]
    items = [{"bytes": data, "label": name} for data, name in zip(IMAGES, names, strict=True)]
    job = client.classify(items, SETS, label_set_column="Label", options=options)

    rows = finished(job, 3, 2)

    assert [row["error_code"] for row in rows] == [None, None, "bad_uri", "bad_uri", None]
    assert [row["label"] in SETS["colours"] for row in rows] == [True, False, False, False, True]
    assert rows[1]["label"] in SETS["animals"]
    assert [row["source_label"] for row in rows] == names
    assert job.retry()
    assert [row["error_code"] for row in finished(job, 3, 2)] == [row["error_code"] for row in rows]


def test_texts(client: Client, options: JobOptions) -> None:
    job = client.embed_text(["a cat", " ", "a dog"], options=options)

    rows = finished(job, 2, 1)

    assert [(row["text"], row["uri"], row["error_code"]) for row in rows] == [
        ("a cat", "", None), ("", "", "empty"), ("a dog", "", None),
    ]  # fmt: skip
    assert job.vectors()[0].tolist() == [0, 2]


def test_a_specification(client: Client, options: JobOptions, cluster: Cluster, tmp_path: Path) -> None:
    folder = cluster.folder / tmp_path.name
    folder.mkdir(exist_ok=True)
    (folder / "a.png").write_bytes(IMAGES[0])
    spec = JobSpec(
        source=str(folder / "a.png"), output=options.output, model="demo", embedding=True,
        format=options.part_format,
    )  # fmt: skip

    assert finished(client.run(spec), 1)[0]["label"] is None
