"""A worker whose forward passes are OpenVINO's writes the rows that torch's would."""

from __future__ import annotations

from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from clipfleet.contract.jobs import DEMO_MODEL, DecodeRoute, Precision
from clipfleet_worker.decode.decoder import Decoder
from clipfleet_worker.models.loader import load_model
from tests.conftest import service_is_missing
from tests.support.cluster import Cluster
from tests.support.reference import cosines


def test_a_job_by_openvino(tmp_path: Path) -> None:
    if find_spec("openvino") is None:
        service_is_missing("openvino is not installed")
    with (
        Cluster(tmp_path, {"CLIPFLEET_BACKEND": "openvino"}) as cluster,
        as_file(files("clipfleet_worker") / "samples") as samples,
    ):
        worker = cluster.start_worker({"CLIPFLEET_FILE_ROOTS": str(samples)})
        answer = cluster.run_json(
            "classify", samples, "--labels", "cherries,rabbit,kite", "--model", "demo",
            "--precision", "fp32", "--store-embeddings", "--output", cluster.folder / "out",
        )  # fmt: skip
        table = pq.read_table(cluster.folder / "out" / "part-00000000.parquet")
        sources = [(samples / name).read_bytes() for name in table["item_id"].to_pylist()]

    assert (answer["state"], answer["ok"]) == ("completed", table.num_rows)
    assert "by openvino" in worker.log()
    model, decoder = load_model(DEMO_MODEL, Precision.FP32, "cpu"), Decoder(max_pixels=10_000_000)
    pixels = [decoder.decode(data, model.pixel_spec, DecodeRoute.FAST).pixels for data in sources]
    expected = model.encode_images(np.stack(pixels))
    assert cosines(np.stack(table["embedding"].to_pylist()), expected).min() >= 0.9999
    assert set(table["model_fingerprint"].to_pylist()) == {model.fingerprint_for(DecodeRoute.FAST)}
