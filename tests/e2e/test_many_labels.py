"""A label set too large for one table of images and labels; two workers, one of which encodes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clipfleet.client import JobOptions
from clipfleet.contract.jobs import DEMO_MODEL, Precision
from clipfleet.contract.label_sets import DEFAULT_TEMPLATE, LabelSet
from clipfleet.ledger import keys
from clipfleet.redis.connection import connect
from clipfleet_worker.models.loader import load_model
from clipfleet_worker.score.ranking import prompts_of
from tests.support.cluster import Cluster
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
            shared = list(client.scan_iter(match="clipfleet:text-matrix:*"))
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
