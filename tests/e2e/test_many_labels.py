"""A label set too large for one table of images and labels; two workers, one of which encodes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import redis

from clipfleet.client import JobOptions
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
        write_images(tmp_path / "images", IMAGES)
        for _ in range(2):
            cluster.launch_worker({"CLIPFLEET_PRECISION": "fp32"})
        options = JobOptions(output=tmp_path / "out", model="demo", chunk_size=4, store_embeddings=True)
        job = cluster.client.classify(tmp_path / "images", names, top_k=TOP_K, options=options)
        assert job.wait(240).ok == IMAGES
        with connect(cluster.server.url) as client:
            shared = shared_matrices(client)
        rows = list(job.results())

    # The matrix was shared, and is the one that the model gives
    model = load_model(DEMO_MODEL, Precision.FP32, "cpu")
    prompts = prompts_of(names, [DEFAULT_TEMPLATE])
    matrix = np.concatenate([model.encode_texts(prompts[n : n + 500]) for n in range(0, LABELS, 500)])
    assert shared == [keys.text_matrix(model.fingerprint, LabelSet(labels=tuple(names)).hash)]
    # The labels are the best ones of a table of all images and labels
    vectors = np.array([row["embedding"] for row in rows], dtype=np.float64)
    logits = model.logit_scale * vectors @ matrix.T.astype(np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    position = {name: number for number, name in enumerate(names)}
    for row, expected in zip(rows, powers / powers.sum(axis=1, keepdims=True), strict=True):
        best, chosen = np.sort(expected)[::-1][:TOP_K], expected[[position[name] for name in row["labels"]]]
        np.testing.assert_allclose(row["scores"], best, rtol=0.05)  # vectors are float16
        np.testing.assert_allclose(row["scores"], chosen, rtol=0.05)


def shared_matrices(client: redis.Redis) -> list[str]:
    return sorted(str(name) for name in client.scan_iter(match="clipfleet:text-matrix:*"))


NAMES, TEMPLATES = 1000, 80


def test_a_large_label_set_is_encoded_once_for_all_jobs_and_workers(tmp_path: Path) -> None:
    names = [f"thing {number}" for number in range(NAMES)]
    templates = [f"view {n} of a {{}}" for n in range(TEMPLATES)]
    images = write_images(tmp_path / "images", 3)
    with Cluster(tmp_path, {"CLIPFLEET_PRECISION": "fp32"}) as cluster:

        def labels() -> list[str]:
            options = JobOptions(model="demo")
            job = cluster.client.classify(images, names, templates=templates, options=options)
            assert job.wait(240).ok == 3
            return [row["label"] for row in job.results()]

        # The first job of the first worker encodes each prompt, once; the second one none
        first, first_notes = counting_worker(cluster, "first")
        found = labels()
        assert sum(texts_in(first_notes)) == NAMES * TEMPLATES
        assert labels() == found
        assert sum(texts_in(first_notes)) == NAMES * TEMPLATES

        # A worker that comes when that one is dead encodes none
        first.kill()
        _, second_notes = counting_worker(cluster, "second")
        assert labels() == found
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
