"""Several label sets in one job, a label set for each item, presets and vectors: the real path."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from clipfleet.client import Client, JobOptions
from clipfleet.contract.parts import PART_COLUMNS, label_columns
from tests.support.cluster import Cluster
from tests.support.images import write_images

ANIMALS, COLOURS = ("cat", "dog", "fish"), ("red", "green", "blue")


@pytest.fixture
def folder(cluster: Cluster, tmp_path: Path) -> Path:
    """A folder of the test's own with seven images, below the worker's roots."""
    folder = cluster.folder / tmp_path.name
    write_images(folder / "images", 7)
    return folder


def rows(output: Path) -> list[dict[str, Any]]:
    return [row for part in sorted(output.glob("part-*.parquet")) for row in pq.read_table(part).to_pylist()]


def test_a_job_file_with_two_label_sets_and_vectors_gives_what_three_jobs_would(
    cluster: Cluster, folder: Path
) -> None:
    (folder / "colours.txt").write_text("\n".join(COLOURS))
    (folder / "job.yaml").write_text(
        "source: images\noutput: both\nmodel: demo\nchunk_size: 3\nembedding: true\ntop_k: 2\nlabel_sets:\n"
        "  animals: [cat, dog, fish]\n"
        "  colours: {file: colours.txt, templates: ['{}', 'something {}']}\n"
    )
    answer = cluster.run_json("run", folder / "job.yaml")
    assert (answer["state"], answer["ok"], answer["output"]) == ("completed", 7, str(folder / "both"))
    images = folder / "images"
    with Client(cluster.client_settings()) as client:

        def into(name: str) -> JobOptions:
            return JobOptions(output=folder / name, model="demo")

        alone = [
            client.classify(images, ANIMALS, top_k=2, options=into("a")),
            client.classify(images, COLOURS, templates=["{}", "something {}"], top_k=2, options=into("c")),
            client.embed(images, options=into("e")),
        ]
        assert [job.wait(120).ok for job in alone] == [7, 7, 7]

    both = rows(folder / "both")
    columns = [*label_columns("animals"), *label_columns("colours")]
    assert list(both[0]) == [*PART_COLUMNS, *columns]
    for row, animal, colour, vector in zip(
        both, rows(folder / "a"), rows(folder / "c"), rows(folder / "e"), strict=True
    ):
        assert row["item_id"] == animal["item_id"]
        assert (row["label"], row["labels"]) == (row["label_animals"], row["labels_animals"])
        assert row["labels_animals"] == animal["labels"]
        assert row["labels_colours"] == colour["labels"]
        np.testing.assert_allclose(row["scores_animals"], animal["scores"], atol=1e-5)
        np.testing.assert_allclose(row["scores_colours"], colour["scores"], atol=1e-5)
        np.testing.assert_allclose(row["embedding"], vector["embedding"], atol=1e-3)
    assert cluster.run("results", folder / "both", "--format", "csv").stdout.startswith("item_index,")


def test_a_column_chooses_the_label_set_of_each_item(cluster: Cluster, folder: Path) -> None:
    chosen = ["animals", "colours", "plants", "", "colours", "animals", "colours"]
    with (folder / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "Label_Set"])
        writer.writerows([f"images/{number:06d}.jpg", name] for number, name in enumerate(chosen))
    for name, labels in (("animals", ANIMALS), ("colours", COLOURS)):
        (folder / f"{name}.json").write_text(json.dumps(labels))

    answer = cluster.run_json(
        "classify", folder / "list.csv", "--label-set", folder / "animals.json", "--label-set",
        folder / "colours.json", "--label-set-column", "label_set", "--model", "demo", "--output",
        folder / "out", expect=3,
    )  # fmt: skip

    assert (answer["ok"], answer["failed"]) == (5, 2)
    found = rows(folder / "out")
    assert list(found[0]) == [*PART_COLUMNS, "Label_Set"]
    for row, name in zip(found, chosen, strict=True):
        expected = {"animals": ANIMALS, "colours": COLOURS}.get(name)
        assert (row["Label_Set"] or "") == name
        assert (set(row["labels"]) == set(expected)) if expected else (row["label"] is None)
    assert [row["error_code"] for row in found if row["status"] == "failed"] == ["bad_uri", "bad_uri"]
    assert "'plants'" in found[2]["error_detail"]
    errors = [json.loads(line) for line in (folder / "out" / "errors.jsonl").read_text().splitlines()]
    assert [error["Label_Set"] for error in errors] == ["plants", found[3]["Label_Set"]]


def test_imagenet(cluster: Cluster, folder: Path) -> None:
    import open_clip  # not by every process that collects the tests: it takes seconds

    cluster.run_json(
        "classify", folder / "images", "--label-set", "imagenet1k", "--model", "demo", "--output",
        folder / "out", "--top-k", "1000",
    )  # fmt: skip
    for row in rows(folder / "out"):
        assert sorted(row["labels"]) == sorted(open_clip.IMAGENET_CLASSNAMES)
        assert sum(row["scores"]) == pytest.approx(1, abs=1e-4)
        assert row["scores"] == sorted(row["scores"], reverse=True)
