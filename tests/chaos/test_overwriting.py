"""`--overwrite` right after a cancel, while workers hold chunks, are late, or frozen: no row of the old job.

A few times here; `OVERWRITES=300 pytest tests/chaos/test_overwriting.py` does it 300 times, with the seed
`OVERWRITES_SEED`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from clipfleet.client import Client
from clipfleet.contract.jobs import JobState, PartFormat
from clipfleet.redis.connection import connect
from clipfleet_worker.machine.embedded.s3 import BUCKET, EmbeddedS3
from tests.support.cluster import Cluster
from tests.support.images import write_images
from tests.support.overwrites import AFTER_ITEMS, Overwriter, Place

pytestmark = pytest.mark.figures

TIMES = int(os.environ.get("OVERWRITES", "4"))
SEED = int(os.environ.get("OVERWRITES_SEED", "1"))
LEASE_SECONDS, WRITE_LIMIT_SECONDS = 1.0, 2.0


@dataclass(frozen=True)
class Bench:
    """A cluster of three workers."""

    cluster: Cluster
    overwriter: Overwriter

    def place(self, number: int) -> Place:
        """A place of its own for each, of the four kinds in turn."""
        part_format = (PartFormat.PARQUET, PartFormat.JSONL)[number // 2 % 2]
        folder = self.cluster.folder
        folders = str(folder / f"out-{number}"), f"s3://{BUCKET}/{folder.name}/out-{number}"
        return Place(folders[number % 2], part_format)


@pytest.fixture
def bench(request: pytest.FixtureRequest, store: EmbeddedS3, tmp_path: Path) -> Iterator[Bench]:
    settings = {**store.environment(), **request.param}
    with Cluster(tmp_path, settings) as cluster, pytest.MonkeyPatch.context() as patch:
        for name, value in {**store.environment(), **request.param}.items():
            patch.setenv(name, value)
        images = write_images(cluster.folder / "images", 24)
        workers = [cluster.start_worker() for _ in range(3)]
        patch.setenv("CLIPFLEET_REDIS_URL", cluster.server.url)
        with Client(on_trouble=print) as client, connect(cluster.server.url) as server:
            yield Bench(cluster, Overwriter(client, server, workers, images, SEED))


QUICK = {
    "CLIPFLEET_LEASE_SECONDS": f"{LEASE_SECONDS:g}",
    "CLIPFLEET_WRITE_LIMIT_SECONDS": f"{WRITE_LIMIT_SECONDS:g}",
    "CLIPFLEET_RECONCILE_SECONDS": "0.5",
}


@pytest.mark.timeout(60 + 30 * TIMES)
@pytest.mark.parametrize("bench", [QUICK], indirect=True, ids=["quick"])
def test_no_row_of_a_job_that_was_cancelled_and_overwritten_is_left(bench: Bench) -> None:
    for number in range(TIMES):
        done = bench.overwriter.run(number, bench.place(number))
        assert done.state is JobState.COMPLETED, f"{number}: {done}\n{bench.cluster.logs()}"
        assert (done.rows, done.foreign_rows, done.surplus_parts) == (AFTER_ITEMS, 0, 0), f"{number}: {done}"
    print(f"{TIMES} overwrites, seed {SEED}: no foreign row, none missing, no surplus part")


@pytest.mark.parametrize("bench", [QUICK], indirect=True, ids=["quick"])
def test_a_worker_that_is_frozen_inside_the_write(bench: Bench, tmp_path: Path) -> None:
    """Its rows lie in a scratch file, whole: it looks at its lease once more before they become a part."""
    flag = tmp_path / "freeze"
    program = ("tests.support.altered_worker", "mid_write", "freeze", str(flag))
    worker = bench.cluster.start_worker(program=program)
    for number in range(4):
        done = bench.overwriter.run_frozen(number, bench.place(number), worker, flag)
        assert (done.state, done.rows) == (JobState.COMPLETED, AFTER_ITEMS), f"{done}\n{bench.cluster.logs()}"
        assert (done.foreign_rows, done.surplus_parts) == (0, 0), done


@pytest.mark.parametrize("bench", [{}], indirect=True, ids=["default settings"])
def test_workers_release_a_cancelled_job_at_once(bench: Bench) -> None:
    """Long before the deadlines of their leases: the overwrite need not wait for those."""
    done = [bench.overwriter.run(number, bench.place(number), freezes=False) for number in range(4)]
    seconds = [one.seconds for one in done]

    took = ", ".join(f"{one:.1f}" for one in seconds)
    print(f"seconds from the cancel until the overwrite had staged its items: {took}")
    assert max(seconds) < 30  # of a lease alone; the figure is in the line above
