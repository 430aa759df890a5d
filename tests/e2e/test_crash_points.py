"""Every crash point is reached in a real run, by the real programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from ops.chaos.crash_points import CrashPoint, stand_in_submits
from tests.support.cluster import Cluster
from tests.support.crash_points import records_in
from tests.support.images import write_images


def test_every_point_is_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passages = tmp_path / "passages"
    stand_in_submits(records_in(passages), monkeypatch.setattr)
    with Cluster(tmp_path) as cluster:
        write_images(tmp_path / "images", 20)
        worker = cluster.start_worker(program=("tests.support.altered_worker", "record", str(passages)))
        for output in (tmp_path / "out", None):
            status = cluster.embed(tmp_path / "images", output, chunk_size=8).wait(120)
            assert (status.state, status.ok) == ("completed", 20), cluster.logs()
        assert worker.terminate() == 0
    reached = passages.read_text().split()
    assert set(reached) == {point.value for point in CrashPoint}
    for point in ("after_claim", "before_write", "mid_write", "after_write", "after_complete"):
        assert reached.count(point) == 6, point  # once for each chunk
    assert reached.count("mid_finish") == 3  # what is in Redis needs no finishing
    assert reached.count("mid_fetch") == 40  # local files: after each
    assert reached.count("after_seal") == 2
