"""Texts go in, vectors come out that are those of the model's own text tower."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from clipfleet.client import Client, JobOptions
from clipfleet.contract.jobs import DEMO_MODEL, Precision
from clipfleet.errors import JobNotFoundError
from clipfleet_worker.models.loader import load_model
from tests.support.cluster import Cluster
from tests.support.waiting import wait_until

TEXTS = ["a photo of a cat", "ein Haus, groß", "word " * 200, "rocket"]


@pytest.fixture
def folder(cluster: Cluster, tmp_path: Path) -> Path:
    folder = cluster.folder / tmp_path.name
    folder.mkdir()
    return folder


def test_lines_of_a_file(cluster: Cluster, folder: Path) -> None:
    (folder / "texts.txt").write_text("\n".join(TEXTS))
    answer = cluster.run_json(
        "embed-text", folder / "texts.txt", "--model", "demo", "--precision", "fp32", "--chunk-size", "3",
        "--output", folder / "out",
    )  # fmt: skip
    assert (answer["state"], answer["ok"]) == ("completed", 4)

    parts = sorted((folder / "out").glob("part-*.parquet"))
    rows = [row for part in parts for row in pq.read_table(part).to_pylist()]

    assert [row["text"] for row in rows] == [text.strip() for text in TEXTS]
    assert [(row["item_id"], row["uri"], row["width"]) for row in rows[:2]] == [
        ("0", "", None),
        ("1", "", None),
    ]
    model = load_model(DEMO_MODEL, Precision.FP32, "cpu")
    expected = model.encode_texts([text.strip() for text in TEXTS])
    np.testing.assert_allclose([row["embedding"] for row in rows], expected, atol=1e-3)


def test_a_column_of_a_table_with_a_blank_text(cluster: Cluster, folder: Path) -> None:
    (folder / "list.csv").write_text("id,phrase,label\na,one cat,x\nb,,y\na,two cats,z\n")
    answer = cluster.run_json(
        "embed-text", folder / "list.csv", "--text-column", "phrase", "--model", "demo", "--output",
        folder / "out", expect=3,
    )  # fmt: skip
    assert (answer["ok"], answer["failed"]) == (2, 1)

    rows = pq.read_table(folder / "out" / "part-00000000.parquet").to_pylist()
    assert [(row["item_id"], row["phrase"], row["source_label"]) for row in rows] == [
        ("a", "one cat", "x"), ("b", "", "y"), ("a", "two cats", "z"),
    ]  # fmt: skip
    assert [row["error_code"] for row in rows] == [None, "empty", None]
    refused = cluster.run("embed-text", folder / "list.csv", "--model", "demo")
    assert refused.returncode == 2
    assert "--text-column" in refused.stderr


def test_a_generator_that_pauses_holds_nothing_back(cluster: Cluster, folder: Path) -> None:
    with Client(cluster.client_settings()) as client:

        def texts() -> Iterator[str]:
            yield "a cat"
            wait_until(lambda: has_first(client), "the first text has its vector")
            yield "a dog"

        options = JobOptions(output=folder / "out", model="demo", chunk_size=1, job_id="paused")
        job = client.embed_text(texts(), options=options)
        assert job.wait(120).ok == 2


def has_first(client: Client) -> bool:
    try:
        return client.job("paused").status().ok == 1
    except JobNotFoundError:  # not submitted yet
        return False
