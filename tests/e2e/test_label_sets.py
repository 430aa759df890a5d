"""Several label sets in one job, a label set for each item, and vectors: the real path."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from clipfleet.client import JobOptions
from clipfleet.contract.columns import label_columns
from clipfleet.contract.parts import PART_COLUMNS
from tests.support.cluster import Cluster
from tests.support.images import write_images

ANIMALS, COLOURS = ("cat", "dog", "fish"), ("red", "green", "blue")


@pytest.fixture
def folder(folder: Path) -> Path:
    """With seven images in it."""
    write_images(folder / "images", 7)
    return folder


def test_two_label_sets_and_vectors_are_as_in_three_jobs(cluster: Cluster, folder: Path) -> None:
    (folder / "colours.txt").write_text("\n".join(COLOURS))
    (folder / "job.yaml").write_text(
        "source: images\noutput: both\nmodel: demo\nchunk_size: 3\nembedding: true\ntop_k: 2\nlabel_sets:\n"
        "  animals: [cat, dog, fish]\n"
        "  colours: {file: colours.txt, templates: ['{}', 'something {}']}\n"
    )
    answer = cluster.run_json("run", folder / "job.yaml")
    assert (answer["state"], answer["ok"], answer["output"]) == ("completed", 7, str(folder / "both"))
    client, images, options = cluster.client, folder / "images", JobOptions(model="demo")
    alone = [
        client.classify(images, ANIMALS, top_k=2, options=options),
        client.classify(images, COLOURS, templates=["{}", "something {}"], top_k=2, options=options),
        client.embed(images, options=options),
    ]
    assert [job.wait(120).ok for job in alone] == [7, 7, 7]

    both = cluster.rows(folder / "both")

    assert [*both[0]] == [*PART_COLUMNS, *label_columns("animals"), *label_columns("colours")]
    for row, animal, colour, vector in zip(both, *(job.results() for job in alone), strict=True):
        assert row["item_id"] == animal["item_id"]
        assert (row["label"], row["labels"]) == (row["label_animals"], row["labels_animals"])
        assert (row["labels_animals"], row["labels_colours"]) == (animal["labels"], colour["labels"])
        np.testing.assert_allclose(row["scores_animals"], animal["scores"], atol=1e-5)
        np.testing.assert_allclose(row["scores_colours"], colour["scores"], atol=1e-5)
        np.testing.assert_allclose(row["embedding"], vector["embedding"], atol=1e-3)


def test_a_column_chooses_the_label_set_of_each_item(cluster: Cluster, folder: Path) -> None:
    chosen = ["animals", "colours", "plants", "", "colours", "animals", "colours"]
    lines = "".join(f"images/{number:06d}.jpg,{name}\n" for number, name in enumerate(chosen))
    (folder / "list.csv").write_text(f"path,Label_Set\n{lines}")
    for name, labels in (("animals", ANIMALS), ("colours", COLOURS)):
        (folder / f"{name}.json").write_text(json.dumps(labels))

    answer = cluster.run_json(
        "classify", folder / "list.csv", "--label-set", folder / "animals.json", "--label-set",
        folder / "colours.json", "--label-set-column", "label_set", "--model", "demo", "--output",
        folder / "out", expect=3,
    )  # fmt: skip

    assert (answer["ok"], answer["failed"]) == (5, 2)
    rows = cluster.rows(folder / "out")
    assert [row["Label_Set"] or "" for row in rows] == chosen
    for row, name in zip(rows, chosen, strict=True):
        expected = {"animals": ANIMALS, "colours": COLOURS}.get(name)
        assert (set(row["labels"]) == set(expected)) if expected else (row["error_code"] == "bad_uri")
    assert "'plants'" in rows[2]["error_detail"]
    errors = [json.loads(line) for line in (folder / "out" / "_errors.jsonl").read_text().splitlines()]
    assert [error["Label_Set"] for error in errors] == ["plants", rows[3]["Label_Set"]]
