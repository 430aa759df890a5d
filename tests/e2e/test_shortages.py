"""A worker that may open too few files: its chunks wait, and no row fails for it."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, WorkerProcess
from tests.support.http_site import HttpSite
from tests.support.images import write_images
from tests.support.waiting import wait_until

ITEMS = 600
SPARE_FILES = 3
REASON = "waits: this worker has too few file descriptors (ulimit -n"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as cluster:
        write_images(tmp_path / "images", ITEMS)
        yield cluster


def limit_files(worker: WorkerProcess, count: int) -> None:
    _, hard = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (count, hard))


@pytest.mark.parametrize("kind", ["file", "http"])
def test_its_chunks_wait_until_it_may_open_more(cluster: Cluster, kind: str) -> None:
    worker = cluster.start_worker()
    _, enough = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
    with HttpSite(cluster.folder) as site:
        base = site.url("/files/images") if kind == "http" else cluster.folder / "images"
        images = [f"{base}/{number:06d}.jpg" for number in range(ITEMS)]
        # The model is loaded and the connections are open: what is missing from now on is missing for items.
        assert cluster.embed(images[:1], cluster.folder / "first").wait(60).ok == 1
        limit_files(worker, len(list(Path(f"/proc/{worker.pid}/fd").iterdir())) + SPARE_FILES)

        job = cluster.embed(images, cluster.folder / "out", chunk_size=20)

        wait_until(lambda: REASON in worker.log() or job.status().state.is_final, "a chunk waits")
        limit_files(worker, enough)
        status = job.wait(120)
    assert (status.ok, status.failed, status.codes) == (ITEMS, 0, {})
    assert REASON in worker.log()
    assert worker.terminate() == 0
