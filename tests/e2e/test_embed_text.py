"""Texts go in, vectors come out that are those of the model's own text tower."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clipfleet.contract.jobs import DEMO_MODEL, Precision
from clipfleet_worker.models.loader import load_model
from tests.support.cluster import Cluster

TEXTS = ["a photo of a cat", "ein Haus, groß", "word " * 200, "rocket"]


def test_lines_of_a_file(cluster: Cluster, folder: Path) -> None:
    (folder / "texts.txt").write_text("\n".join(TEXTS))
    cluster.run_json(
        "embed-text", folder / "texts.txt", "--model", "demo", "--precision", "fp32", "--chunk-size", "3",
        "--output", folder / "out",
    )  # fmt: skip

    rows = cluster.rows(folder / "out")

    texts = [text.strip() for text in TEXTS]
    assert [(row["text"], row["item_id"], row["uri"], row["width"]) for row in rows] == [
        (text, str(number), "", None) for number, text in enumerate(texts)
    ]
    expected = load_model(DEMO_MODEL, Precision.FP32, "cpu").encode_texts(texts)
    np.testing.assert_allclose([row["embedding"] for row in rows], expected, atol=1e-3)


def test_a_column_of_a_table_with_a_blank_text(cluster: Cluster, folder: Path) -> None:
    (folder / "list.csv").write_text("id,phrase,label\na,one cat,x\nb,,y\na,two cats,z\n")
    command = ("embed-text", folder / "list.csv", "--model", "demo")
    answer = cluster.run_json(*command, "--text-column", "phrase", "--output", folder / "out", expect=3)
    assert (answer["ok"], answer["failed"]) == (2, 1)

    rows = cluster.rows(folder / "out")

    assert [(row["item_id"], row["phrase"], row["source_label"], row["error_code"]) for row in rows] == [
        ("a", "one cat", "x", None), ("b", "", "y", "empty"), ("a", "two cats", "z", None),
    ]  # fmt: skip
    refused = cluster.run(*command)
    assert (refused.returncode, "--text-column" in refused.stderr) == (2, True)
