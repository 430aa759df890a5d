"""A label set too large for one table of images and labels; two workers, one of which encodes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest
import redis

from clipfleet.contract.jobs import DEMO_MODEL, Precision
from clipfleet.contract.label_sets import DEFAULT_TEMPLATE, LabelSet
from clipfleet.ledger import keys
from clipfleet.redis.connection import connect
from clipfleet_worker.models.loader import load_model
from clipfleet_worker.score.ranking import prompts_of
from tests.support.cluster import Cluster, WorkerProcess
from tests.support.images import write_images

pytestmark = pytest.mark.long

LABELS = 10_500
IMAGES = 40
TOP_K = 7


def test_ten_thousand_labels_on_two_workers(tmp_path: Path) -> None:
    names = [f"thing number {number}" for number in range(LABELS)]
    with Cluster(tmp_path) as cluster:
        (tmp_path / "names.txt").write_text("\n".join(names))
        write_images(tmp_path / "images", IMAGES)
        for _ in range(2):
            cluster.launch_worker({"CLIPFLEET_PRECISION": "fp32"})
        answer = cluster.run_json(
            "classify", tmp_path / "images", "--labels", tmp_path / "names.txt", "--model", "demo",
            "--chunk-size", "4", "--top-k", str(TOP_K), "--store-embeddings", "--output", tmp_path / "out",
        )  # fmt: skip
        assert (answer["state"], answer["ok"]) == ("completed", IMAGES)
        with connect(cluster.server.url) as client:
            shared = shared_matrices(client)
    table = ds.dataset(sorted((tmp_path / "out").glob("part-*.parquet"))).to_table()

    # The matrix was shared, and is the one that the model gives
    model = load_model(DEMO_MODEL, Precision.FP32, "cpu")
    matrix = np.concatenate(
        [
            model.encode_texts(prompts_of(names[n : n + 500], [DEFAULT_TEMPLATE]))
            for n in range(0, LABELS, 500)
        ]
    )
    assert shared == [keys.text_matrix(model.fingerprint, LabelSet(labels=tuple(names)).hash)]
    # The labels are the best ones of a table of all images and labels
    vectors = np.array(table["embedding"].to_pylist(), dtype=np.float64)
    logits = model.logit_scale * vectors @ matrix.T.astype(np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = powers / powers.sum(axis=1, keepdims=True)
    position = {name: number for number, name in enumerate(names)}
    for row, labels, scores in zip(
        expected, table["labels"].to_pylist(), table["scores"].to_pylist(), strict=True
    ):
        np.testing.assert_allclose(scores, np.sort(row)[::-1][:TOP_K], rtol=0.05)  # vectors are float16
        np.testing.assert_allclose(scores, row[[position[label] for label in labels]], rtol=0.05)


def shared_matrices(client: redis.Redis) -> list[str]:
    return sorted(str(name) for name in client.scan_iter(match="clipfleet:text-matrix:*"))


NAMES, TEMPLATES = 1000, 80


def test_a_large_label_set_is_encoded_once_for_all_jobs_and_workers(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(f"thing {number}" for number in range(NAMES)))
    templates = [word for n in range(TEMPLATES) for word in ("--template", f"view {n} of a {{}}")]
    write_images(tmp_path / "images", 3)
    question = (
        "classify", tmp_path / "images", "--labels", tmp_path / "names.txt", *templates, "--model", "demo",
        "--output",
    )  # fmt: skip
    with Cluster(tmp_path, {"CLIPFLEET_PRECISION": "fp32"}) as cluster:

        def labelled_by(worker: WorkerProcess, output: str) -> list[str]:
            assert cluster.run_json(*question, tmp_path / output)["ok"] == 3
            assert worker.process.poll() is None
            table = ds.dataset(sorted((tmp_path / output).glob("part-*.parquet"))).to_table()
            labels: list[str] = table["label"].to_pylist()
            return labels

        # The first job of the first worker encodes each prompt, once; the second one none
        first, first_notes = counting_worker(cluster, "first")
        labels = labelled_by(first, "one")
        assert sum(texts_in(first_notes)) == NAMES * TEMPLATES
        assert labelled_by(first, "two") == labels
        assert sum(texts_in(first_notes)) == NAMES * TEMPLATES

        # A worker that comes when that one is dead encodes none
        first.kill()
        second, second_notes = counting_worker(cluster, "second")
        assert labelled_by(second, "three") == labels
        assert texts_in(second_notes) == []

        # What it costs Redis: the matrix as it is, for a day
        with connect(cluster.server.url) as client:
            (name,) = shared_matrices(client)
            dimension = load_model(DEMO_MODEL, Precision.FP32, "cpu").embedding_dimension
            assert NAMES * dimension * 4 <= client.memory_usage(name) <= NAMES * dimension * 4 * 1.3 + 1024
            assert 0 < client.ttl(name) <= 86_400


def counting_worker(cluster: Cluster, name: str) -> tuple[WorkerProcess, Path]:
    notes = cluster.folder / f"{name}.texts"
    return cluster.start_worker(program=("tests.support.altered_worker", "count", str(notes))), notes


def texts_in(notes: Path) -> list[int]:
    return [int(line) for line in notes.read_text().split()] if notes.exists() else []
