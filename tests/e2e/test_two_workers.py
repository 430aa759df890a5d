"""Workers die, freeze and lose their server during a job: one row per input, one event."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from clipfleet.client import JobHandle
from clipfleet.ledger import keys
from clipfleet.redis.connection import connect
from tests.support.cluster import Cluster, WorkerProcess, ends
from tests.support.images import write_images
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.figures, pytest.mark.long]

IMAGES = 20_000
IMAGES_IN_REDIS = 6_000
SETTINGS = {
    "CLIPFLEET_LEASE_SECONDS": "4",
    "CLIPFLEET_RECONCILE_SECONDS": "1",
    "CLIPFLEET_ITEMS_IN_FLIGHT": "1024",
}


def many_images(folder: Path, count: int) -> Path:
    """`count` files with 200 different images in them."""
    originals = write_images(folder / "originals", 200)
    images = folder / "images"
    images.mkdir()
    for number in range(count):
        os.link(originals[number % len(originals)], images / f"{number:06d}.jpg")
    return images


def leases_of(cluster: Cluster, job: JobHandle) -> dict[str, str]:
    """Leased chunks of a job and the tokens that hold them."""
    with connect(cluster.server.url) as client:
        owners: dict[str, str] = client.hgetall(keys.job(job.job_id, keys.OWNERS))
    return owners


@pytest.mark.timeout(600)
def test_kill_freeze_and_restart_cost_nothing(tmp_path: Path) -> None:
    _run(tmp_path, IMAGES, output=tmp_path / "out")


@pytest.mark.timeout(300)
def test_kill_freeze_and_restart_cost_nothing_where_the_rows_are_in_redis(tmp_path: Path) -> None:
    _run(tmp_path, IMAGES_IN_REDIS, output=None)


def _run(tmp_path: Path, count: int, output: Path | None) -> None:
    with Cluster(tmp_path, SETTINGS) as cluster:
        images = many_images(tmp_path, count)
        first, second = cluster.launch_worker(), cluster.start_worker()
        cluster.wait_ready(first)
        job = cluster.embed(images, output, chunk_size=128)
        figures = _disturb(cluster, job, first, second, count)
        status = job.wait(400)
        assert (status.state, status.ok, status.failed) == ("completed", count, 0), cluster.logs()
        rows = _rows(job)
        assert rows["item_index"].to_pylist() == list(range(count))
        assert rows["item_id"].to_pylist() == [f"{number:06d}.jpg" for number in range(count)]
        assert ends(cluster, job.job_id) == [("0", "completed")]
        print(f"\n{count} images: missing 0, doubled 0, events 1; {figures}")


def _disturb(
    cluster: Cluster, job: JobHandle, first: WorkerProcess, second: WorkerProcess, count: int
) -> str:
    def done(share: float) -> Callable[[], bool]:
        return lambda: job.status().ok >= share * count

    wait_until(done(0.1), "a tenth of the rows is there", 120)
    first.kill()
    second.freeze()
    held = leases_of(cluster, job)
    assert held, "both workers hold chunks"
    killed = time.monotonic()
    third = cluster.start_worker()
    wait_until(
        lambda: not held.items() & leases_of(cluster, job).items(),
        "every lease of the dead and the frozen worker is reclaimed",
    )
    recovery_seconds = time.monotonic() - killed
    second.thaw()
    wait_until(done(0.4), "chunks are completed", 120)
    cluster.server.child.kill()
    cluster.server.start()
    restarted = time.monotonic()
    at_restart = job.status().ok
    wait_until(lambda: job.status().ok > at_restart, "chunks are completed after the restart", 120)
    resumed_seconds = time.monotonic() - restarted
    assert third.process.poll() is None, third.log()
    return (
        f"{len(held)} chunks reclaimed {recovery_seconds:.1f} s after the kill (a worker's start included), "
        f"first row {resumed_seconds:.1f} s after the server's restart"
    )


def _rows(job: JobHandle) -> pa.Table:
    columns = ["item_index", "item_id"]
    if job.job.output_is_redis:
        stream = job.rows_reader().read(columns)
        return pa.Table.from_batches(stream.batches, stream.schema)
    return ds.dataset(sorted(Path(job.output).glob("data/part-*.parquet"))).to_table(columns=columns)
