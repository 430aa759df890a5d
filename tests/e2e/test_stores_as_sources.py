"""The vectors of a store as source of labels and figures: a real server, a real worker, the demo model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clipfleet.client import JobOptions
from clipfleet.contract.jobs import JobState
from clipfleet.outputs import open_output
from clipfleet.results.part_rows import PartRows
from clipfleet.results.rows import rows
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.place import EmbeddedBy, StorePlace, store_place
from clipfleet.store.rows import store_schema
from tests.support.cluster import Cluster
from tests.support.images import write_images
from tests.support.s3 import S3Bucket
from tests.support.store_rows import LISTED_AT, NO_ADDRESSES

LABELS = ("red apple", "dog", "car", "house")
COUNT, WAIT = 12, 300
GONE = 5  # this row is gone at version 3


def fill_store(uri: str, output: Path) -> StorePlace:
    """A store with the rows of an embed job; at its newest version the item of one of them is gone."""
    embedded = [*rows(PartRows(open_output(str(output))))]
    vectors = embedded[0]["embedding"]
    fingerprint = embedded[0]["model_fingerprint"]
    place = store_place(uri)
    place.create(EmbeddedBy(model="demo", fingerprint=fingerprint, dimension=len(vectors)))
    schema = store_schema(len(vectors), [pa.field("shelf", pa.string())])
    stored = [
        {name: one[name] for name in schema.names if name in one}
        | {"digest": number, "listed_at": LISTED_AT, "shelf": f"shelf {number % 2}"}
        for number, one in enumerate(embedded)
    ]
    dataset = VectorDataset.create(place.dataset_uri(fingerprint), schema)
    dataset = dataset.replace(NO_ADDRESSES, batches(stored, schema), {})
    where = next(dataset.batches(["item_id"], with_address=True))["_rowaddr"].to_numpy()
    gone = batches([stored[GONE] | {"gone_at": LISTED_AT}], schema)
    dataset.replace(where[GONE : GONE + 1], gone, {})
    return place


def batches(found: list[dict[str, Any]], schema: pa.Schema) -> list[pa.RecordBatch]:
    return pa.Table.from_pylist(found, schema=schema).to_batches()


@pytest.fixture(scope="module")
def embedded(cluster: Cluster) -> Path:
    """The output of an embed job; its images are gone by now."""
    folder = cluster.folder / "stores"
    write_images(folder / "images", COUNT)
    options = JobOptions(model="demo", output=folder / "embedded")
    cluster.client.embed(folder / "images", options=options).wait(WAIT)
    shutil.rmtree(folder / "images")
    return folder / "embedded"


@pytest.fixture(scope="module")
def store(cluster: Cluster, embedded: Path) -> StorePlace:
    return fill_store(str(cluster.folder / "stores" / "store"), embedded)


def stored(output: Path) -> list[dict[str, Any]]:
    return [*rows(PartRows(open_output(str(output))))]


def same_labels(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    """Whether these rows have the labels of those, by their ids."""
    by_id = {row["item_id"]: row for row in expected}
    for row in found:
        other = by_id[row["item_id"]]
        np.testing.assert_allclose(row["scores"], other["scores"], atol=1e-3)
        if row["labels"] != other["labels"]:
            return False
    return True


def test_relabel(cluster: Cluster, folder: Path, store: StorePlace, embedded: Path) -> None:
    said = cluster.run("relabel", store.uri, "--labels", ",".join(LABELS), "-o", folder / "labelled")
    cluster.client.relabel(embedded, LABELS, options=JobOptions(output=folder / "of the output")).wait(WAIT)

    assert said.returncode == 0, said.stderr
    assert f"Done: {COUNT - 1} labelled again" in said.stderr
    found = stored(folder / "labelled")
    assert [row["item_index"] for row in found] == [*range(COUNT - 1)]
    assert same_labels(found, stored(folder / "of the output"))
    assert {row["shelf"] for row in found} == {"shelf 0", "shelf 1"}
    manifest = json.loads((folder / "labelled" / "_manifest.json").read_text())
    assert (manifest["total"], manifest["schema_version"]) == (COUNT - 1, 5)


def test_relabel_as_of_a_version_with_copies_of_the_vectors(
    cluster: Cluster, folder: Path, store: StorePlace
) -> None:
    options = JobOptions(output=folder / "labelled", store_embeddings=True, chunk_size=1)

    job = cluster.client.relabel(store.uri, LABELS, as_of="2", options=options)

    assert job.wait(WAIT).state is JobState.COMPLETED
    found = stored(folder / "labelled")
    assert len(found) == COUNT
    assert all(row["embedding"] for row in found)


def test_relabel_a_store_in_s3(cluster: Cluster, folder: Path, embedded: Path, s3: S3Bucket) -> None:
    place = fill_store(f"{s3.uri}/store", embedded)

    job = cluster.client.relabel(place.uri, LABELS, options=JobOptions(output=folder / "labelled"))

    assert job.wait(WAIT).state is JobState.COMPLETED
    assert len(stored(folder / "labelled")) == COUNT - 1


def test_evaluate_with_prompts(cluster: Cluster, folder: Path, store: StorePlace) -> None:
    said = cluster.run(
        "evaluate", store.uri, "--truth-column", "shelf", "--labels", "shelf 0,shelf 1", "--as-of", "2",
        "-o", folder / "prompts", "--json",
    )  # fmt: skip

    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout)
    assert (found["items"], found["source"]) == (COUNT, f"{store.uri}@2")
