"""The whole way on a device: the real command line, a real server, a real worker."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.dataset as ds

from tests.support.cluster import Cluster
from tests.support.images import encoded, photo
from tests.support.reference import cosines

CUDA = {"CLIPFLEET_DEVICE": "cuda", "CLIPFLEET_BACKEND": "auto", "CLIPFLEET_PRECISION": "auto"}
CPU = {"CLIPFLEET_DEVICE": "cpu", "CLIPFLEET_PRECISION": "fp32"}


def test_vectors_are_those_of_the_cpu(tmp_path: Path) -> None:
    # Given images in two layouts, and one that nobody can decode
    images = tmp_path / "images"
    images.mkdir()
    for number in range(300):
        options = {"subsampling": "4:4:4"} if number % 2 else {"progressive": True}
        data = encoded(photo(number, 200, 150), quality=90, **options)
        (images / f"{number:03}.jpg").write_bytes(data)
    (images / "300.jpg").write_bytes(b"\xff\xd8\xff")

    vectors = {}
    for name, settings in (("cuda", CUDA), ("cpu", CPU)):
        (tmp_path / name).mkdir()
        with Cluster(tmp_path / name, settings | {"CLIPFLEET_FILE_ROOTS": str(tmp_path)}) as cluster:
            worker = cluster.start_worker()
            answer = cluster.run_json(
                "embed", images, "--model", "demo", "--output", tmp_path / name / "out", expect=3
            )
            assert (answer["ok"], answer["failed"]) == (300, 1)
            assert worker.terminate() == 0
            assert "worst cosine to fp32" in worker.log()
            if name == "cuda":
                assert "used: graph" in worker.log() or "graph (no faster" in worker.log()
        parts = sorted((tmp_path / name / "out").glob("data/part-*.parquet"))
        rows = ds.dataset(parts).to_table().sort_by("item_index").to_pylist()
        vectors[name] = np.array([row["embedding"] for row in rows[:300]], dtype=np.float32)

    assert cosines(vectors["cuda"], vectors["cpu"]).min() >= 0.997
