"""Every crash point is reached in a real run, by the real programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipfleet.client import Client, JobOptions
from ops.chaos.crash_points import CrashPoint, stand_in_submits
from tests.support.cluster import Cluster
from tests.support.crash_points import Recorder
from tests.support.images import write_images


def test_every_point_is_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passages = tmp_path / "passages"
    recorder = Recorder(passages)
    stand_in_submits(recorder.reach, monkeypatch.setattr)
    with Cluster(tmp_path) as cluster:
        write_images(tmp_path / "images", 20)
        worker = cluster.start_worker(program=("tests.support.crashing_worker", "record", str(passages)))
        with Client(cluster.client_settings()) as client:
            options = JobOptions(output=tmp_path / "out", model="demo", chunk_size=8)
            status = client.embed(tmp_path / "images", options=options).wait(120)
            assert (status.state, status.ok) == ("completed", 20), cluster.logs()
            options = JobOptions(model="demo", chunk_size=8)
            status = client.embed(tmp_path / "images", options=options).wait(120)
            assert (status.state, status.ok) == ("completed", 20), cluster.logs()
        assert worker.terminate() == 0
    assert set(recorder.reached()) == {point.value for point in CrashPoint}
    for point in ("after_claim", "before_write", "mid_write", "after_write", "after_complete"):
        assert recorder.reached().count(point) == 6, point  # once for each chunk
    assert recorder.reached().count("mid_finish") == 3  # what is in Redis needs no finishing
    assert recorder.reached().count("mid_fetch") == 40  # local files: after each
    assert recorder.reached().count("after_seal") == 2
