"""A worker that was paused for longer than its watchdog waits continues where nothing is broken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, ends
from tests.support.images import write_images
from tests.support.waiting import wait_until
from tests.support.watchers import Looks, watcher_of

ITEMS = 60
STANDSTILL_LOOKS = 20  # without a sign of life, 0.1 s each


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    settings = {"CLIPFLEET_RECONCILE_SECONDS": "0.5", "CLIPFLEET_LEASE_SECONDS": "4"}
    with Cluster(tmp_path, settings) as cluster:
        write_images(tmp_path / "images", ITEMS)
        yield cluster


def test_it_completes_its_job_and_the_next_one(cluster: Cluster) -> None:
    worker = cluster.start_worker(program=("tests.support.altered_worker", "standstill", "2"))
    looks = Looks(watcher_of(worker.pid))
    first = cluster.embed(cluster.folder / "images", cluster.folder / "first", chunk_size=2)
    wait_until(lambda: first.status().leased_chunks, "it has claimed a chunk")

    worker.freeze()
    before = looks.since
    wait_until(lambda: looks.since - before > 3 * STANDSTILL_LOOKS, "the watchdog's limit has passed")
    worker.thaw()

    assert first.wait(120).ok == ITEMS
    second = cluster.embed(cluster.folder / "images", cluster.folder / "second")
    assert second.wait(120).ok == ITEMS
    assert [len(ends(cluster, job.job_id)) for job in (first, second)] == [1, 1]
    assert worker.process.poll() is None, worker.log()
    assert "hangs" not in worker.log()
    assert worker.terminate() == 0
