"""A worker whose forward passes are OpenVINO's writes the rows that torch's would."""

from __future__ import annotations

from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path

import numpy as np

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
        job = cluster.embed(samples, tmp_path / "out", precision=Precision.FP32)
        assert job.wait(120).state == "completed"
        rows = list(job.results())
        sources = [(samples / row["item_id"]).read_bytes() for row in rows]

    assert "by openvino" in worker.log()
    model, decoder = load_model(DEMO_MODEL, Precision.FP32, "cpu"), Decoder(max_pixels=10_000_000)
    pixels = [decoder.decode(data, model.pixel_spec, DecodeRoute.FAST).pixels for data in sources]
    expected = model.encode_images(np.stack(pixels))
    assert cosines(np.array([row["embedding"] for row in rows]), expected).min() >= 0.9999
    assert {row["model_fingerprint"] for row in rows} == {model.fingerprint_for(DecodeRoute.FAST)}
