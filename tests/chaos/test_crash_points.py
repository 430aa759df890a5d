"""Death at every crash point: another process continues, and the job ends exact, wherever its rows go.

A second worker is frozen while the first one dies, and continues once it is thawed.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from clipfleet.client import JobOptions
from clipfleet.contract.jobs import REDIS_OUTPUT
from clipfleet.job_handle import JobHandle
from clipfleet.ledger import keys
from clipfleet.outputs import objects
from clipfleet.redis.connection import connect
from clipfleet_worker.machine.embedded.s3 import BUCKET, EmbeddedS3
from tests.support.cluster import Cluster, WorkerProcess, job_events
from tests.support.documents import ROOT
from tests.support.images import write_images
from tests.support.waiting import wait_until

pytestmark = pytest.mark.figures

LEASE_SECONDS, RECONCILE_SECONDS = 2.0, 0.5
CRASHING = "tests.support.altered_worker"
IMAGES = 24
CHUNK_SIZE = 8
TEXTS = 1200  # in one chunk: three slices of rows in Redis

OF_CHUNKS = (
    "after_claim", "mid_fetch", "before_write", "mid_write", "after_write", "after_complete", "before_ack",
)  # fmt: skip
IN_FOLDER = [(point, 1) for point in OF_CHUNKS]
IN_FOLDER += [("mid_fetch", 11), ("mid_finish", 1), ("mid_finish", 2), ("mid_finish", 3)]
IN_REDIS = [(point, 1) for point in OF_CHUNKS if point != "mid_fetch"] + [("mid_write", 2), ("mid_write", 3)]
OF_STORED = [(point, 1) for point in OF_CHUNKS if point != "mid_fetch"] + [("mid_finish", 2)]
IN_S3 = [("mid_write", 2), ("after_write", 2), ("after_complete", 3), ("mid_finish", 1), ("mid_finish", 3)]


@dataclass(frozen=True)
class Bench:
    """A cluster with one worker that is frozen while others die."""

    cluster: Cluster
    spare: WorkerProcess

    @property
    def images(self) -> Path:
        return self.cluster.folder / "images"

    def dies_at(self, point: str, passage: int) -> WorkerProcess:
        """Freeze the spare; a worker starts that will die, and receives every hint from now on."""
        self.spare.freeze()
        with connect(self.cluster.server.url) as server:
            wait_until(lambda: not server.info("clients")["blocked_clients"], "the spare receives no hint")
        return self.cluster.start_worker(program=(CRASHING, point, str(passage)))

    def embedded(self, kind: str) -> JobHandle:
        """A finished job that keeps the vectors of the images."""
        output = {"folder": f"{self.cluster.folder}/vectors", "S3": f"s3://{BUCKET}/vectors", "Redis": None}
        job_id = f"vectors-{kind}"
        job = self.cluster.embed(self.images, output[kind], job_id=job_id, chunk_size=CHUNK_SIZE)
        job.wait(120)
        return job

    def labelled(self, earlier: JobHandle, output: str, job_id: str | None = None) -> JobHandle:
        """A job that labels its vectors; of one id it is the same one."""
        options = JobOptions(output=output, chunk_size=CHUNK_SIZE, job_id=job_id)
        return self.cluster.client.relabel(earlier, ["red", "green", "blue"], options=options)

    def is_exact_after(self, worker: WorkerProcess, job: JobHandle, total: int, what: str) -> None:
        """The worker dies, the spare continues: one row per input in order, one event, counters that fit."""
        assert worker.process.wait(60) == -signal.SIGKILL, worker.log()
        died = time.monotonic()
        self.spare.thaw()
        self.is_exact(job, total)
        print(f"{what}: complete {time.monotonic() - died:.1f} s after the death")

    def is_exact(self, job: JobHandle, total: int) -> None:
        status = job.wait(120)
        assert (status.state, status.ok, status.failed) == ("completed", total, 0), self.cluster.logs()
        assert status.done_chunks == status.chunks
        assert [row["item_index"] for row in job.results()] == list(range(total))
        assert len(job_events(self.cluster, job.job_id)) == 1


@pytest.fixture(scope="module")
def bench(store: EmbeddedS3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    settings = {
        **store.environment(),
        "CLIPFLEET_LEASE_SECONDS": f"{LEASE_SECONDS:g}",
        "CLIPFLEET_RECONCILE_SECONDS": f"{RECONCILE_SECONDS:g}",
    }
    folder = tmp_path_factory.mktemp("crash-points")
    with Cluster(folder, settings) as cluster, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment().items():
            patch.setenv(name, value)
        write_images(folder / "images", IMAGES)
        yield Bench(cluster, cluster.start_worker())


@pytest.fixture(autouse=True)
def _only_the_spare_is_left(bench: Bench) -> Iterator[None]:
    yield
    for worker in bench.cluster.workers:
        if worker is not bench.spare:  # in the next test it would take what is another's
            worker.kill()
    bench.spare.thaw()


@pytest.mark.parametrize(("point", "passage"), IN_FOLDER)
def test_of_a_job_in_a_folder(bench: Bench, point: str, passage: int) -> None:
    worker = bench.dies_at(point, passage)
    output = bench.cluster.folder / f"{point}-{passage}"
    job = bench.cluster.embed(bench.images, output, chunk_size=CHUNK_SIZE)
    bench.is_exact_after(worker, job, IMAGES, f"folder, {point} {passage}")
    assert (output / objects.SUCCESS).exists()
    assert list((output / objects.TMP).glob("*")) == []


@pytest.mark.parametrize(("point", "passage"), IN_REDIS)
def test_of_a_job_in_redis(bench: Bench, point: str, passage: int) -> None:
    worker = bench.dies_at(point, passage)
    texts = [f"text {number}" for number in range(TEXTS)]
    job = bench.cluster.client.embed_text(texts, options=JobOptions(model="demo", chunk_size=TEXTS))
    bench.is_exact_after(worker, job, TEXTS, f"Redis, {point} {passage}")
    pattern = keys.pending(job.job_id, "*", "*").replace("{", "[{]").replace("}", "[}]")
    with connect(bench.cluster.server.url) as server:
        assert all(0 < server.ttl(key) <= 3600 for key in server.scan_iter(pattern))


@pytest.mark.parametrize(("point", "passage"), IN_S3)
def test_of_a_job_on_s3(bench: Bench, point: str, passage: int) -> None:
    worker = bench.dies_at(point, passage)
    output = f"s3://{BUCKET}/{point}-{passage}-{time.monotonic_ns()}"
    job = bench.cluster.embed(bench.images, output, chunk_size=CHUNK_SIZE)
    bench.is_exact_after(worker, job, IMAGES, f"S3, {point} {passage}")


@pytest.mark.parametrize(("point", "passage"), OF_STORED)
@pytest.mark.parametrize("origin", ["folder", "Redis", "S3"])
def test_of_a_job_over_stored_vectors(bench: Bench, origin: str, point: str, passage: int) -> None:
    """It continues with rows that keep what they had, whichever output holds the vectors."""
    cluster = bench.cluster
    earlier = bench.embedded(origin)
    undisturbed = bench.labelled(earlier, f"{cluster.folder}/undisturbed-{origin}", f"undisturbed-{origin}")
    undisturbed.wait(120)
    worker = bench.dies_at(point, passage)
    job = bench.labelled(earlier, f"{cluster.folder}/labelled-{origin}-{point}-{passage}")
    bench.is_exact_after(worker, job, IMAGES, f"relabel from {origin}, {point} {passage}")
    rows, expected = list(job.results()), list(undisturbed.results())
    assert rows == expected
    kept = ("item_id", "uri", "width", "height", "content_hash", "model_fingerprint")
    assert [[row[name] for name in kept] for row in rows] == [
        [row[name] for name in kept] for row in earlier.results()
    ]
    assert len({row["label"] for row in rows}) > 1, "rows could be exchanged unseen"


@pytest.mark.parametrize(("point", "passage"), [("mid_submit", 1), ("mid_submit", 2), ("after_seal", 1)])
@pytest.mark.parametrize("kind", ["folder", "Redis", "S3"])
def test_of_a_submit(bench: Bench, point: str, passage: int, kind: str) -> None:
    cluster, job_id = bench.cluster, f"{kind}-{point}-{passage}"
    total = 300 if passage > 1 else IMAGES  # a staged file has 256 chunks
    source = cluster.folder / f"list-{total}.csv"
    source.write_text("path\n" + "".join(f"images/{number % IMAGES:06d}.jpg\n" for number in range(total)))
    s3 = f"s3://{BUCKET}/{job_id}-{time.monotonic_ns()}"
    output = {"folder": str(cluster.folder / job_id), "Redis": REDIS_OUTPUT, "S3": s3}[kind]
    program = [sys.executable, "-m", "tests.support.crashing_submit", point, str(passage)]
    died = subprocess.run(
        [*program, source, output, job_id, "1"],
        env=cluster.environment(), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert died.returncode == -signal.SIGKILL, died.stderr
    if point == "mid_submit":
        wait_until(lambda: cluster.status(job_id).leased_chunks == 0, "no chunk is leased")
        assert not cluster.status(job_id).sealed
        cluster.embed(source, output, job_id=job_id, chunk_size=1)
    bench.is_exact(cluster.client.job(job_id), total)
