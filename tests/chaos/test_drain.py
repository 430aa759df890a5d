"""SIGTERM at bad moments: the worker exits with 0 in time, and the chunks it held are due at once."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from clipfleet.job_handle import JobHandle
from clipfleet.ledger import keys
from clipfleet.redis.connection import connect
from clipfleet_worker.process.watchdog import EXIT_HUNG
from tests.support.cluster import Cluster, WorkerProcess
from tests.support.http_site import HttpSite
from tests.support.images import write_images
from tests.support.waiting import wait_until

pytestmark = pytest.mark.figures

DRAIN_SECONDS = 8.0
PATIENCE_SECONDS = 60.0  # for a busy machine
SETTINGS = {
    "CLIPFLEET_DRAIN_SECONDS": f"{DRAIN_SECONDS:g}",
    "CLIPFLEET_RECONCILE_SECONDS": "1",
    "CLIPFLEET_LEASE_SECONDS": "10",  # some tests wait until one expires
}
CRASHING = "tests.support.altered_worker"
IMAGES = 40


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, SETTINGS) as cluster:
        write_images(tmp_path / "images", IMAGES)
        yield cluster


def embed(cluster: Cluster) -> JobHandle:
    """A job of five chunks."""
    return cluster.embed(cluster.folder / "images", cluster.folder / "out", chunk_size=8)


def hanging(cluster: Cluster, point: str) -> tuple[WorkerProcess, Path]:
    """A worker that hangs at a point, and the file that says that it does."""
    there = cluster.folder / "there"
    return cluster.start_worker(program=(CRASHING, point, "hang", str(there))), there


def drains_in_time(
    worker: WorkerProcess, what: str, numbers: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGTERM)
) -> None:
    """Send the signals: the worker exits with 0; the time it took is printed beside its limit."""
    started = time.monotonic()
    for number in numbers:
        worker.process.send_signal(number)
    assert worker.process.wait(PATIENCE_SECONDS) == 0, worker.log()
    assert "Traceback" not in worker.log()
    print(f"{numbers[0].name} {what}: exited after {time.monotonic() - started:.1f} s of {DRAIN_SECONDS:g}")


def no_chunk_is_blamed(cluster: Cluster, job: JobHandle) -> None:
    """No chunk is leased, and none was lost or has failed."""
    status = job.status()
    assert status.leased_chunks == 0
    with connect(cluster.server.url) as server:
        troubles = server.hgetall(keys.job(job.job_id, keys.TROUBLES))
    assert not [name for name in troubles if name.endswith(("losses", "failures"))], troubles


def is_finished_by_another(cluster: Cluster, job: JobHandle) -> None:
    cluster.start_worker()
    status = job.wait(120)
    assert (status.state, status.ok) == ("completed", IMAGES), cluster.logs()
    assert [row["item_index"] for row in job.results()] == list(range(IMAGES))


def test_full_of_urls_that_do_not_answer(cluster: Cluster, site: HttpSite) -> None:
    worker = cluster.start_worker({"CLIPFLEET_HOST_CONNECTIONS": "64"})
    urls = [site.url(f"/stall?{number}") for number in range(200)]
    job = cluster.embed(urls, cluster.folder / "out", chunk_size=50)
    wait_until(lambda: site.open_connections >= 50, "many requests are open")
    drains_in_time(worker, "while 200 URLs do not answer")
    no_chunk_is_blamed(cluster, job)
    assert job.status().due_chunks == 4


TERM, INT, QUIT, HUP = signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP


@pytest.mark.parametrize("numbers", [(TERM, TERM), (INT, QUIT), (QUIT,), (HUP, INT)])
def test_by_whatever_signal(cluster: Cluster, numbers: Sequence[signal.Signals]) -> None:
    worker, loading = hanging(cluster, "load")
    job = embed(cluster)
    wait_until(lambda: loading.exists() and job.status().leased_chunks == 5, "all wait for the model")
    drains_in_time(worker, "while the model loads", numbers)
    no_chunk_is_blamed(cluster, job)
    if numbers == (TERM, TERM):
        is_finished_by_another(cluster, job)


@pytest.mark.parametrize("point", ["after_claim", "mid_write", "after_write", "mid_finish"])
def test_while_a_thread_hangs(cluster: Cluster, point: str) -> None:
    worker, there = hanging(cluster, point)
    job = embed(cluster)
    wait_until(there.exists, "a thread hangs")
    drains_in_time(worker, f"while a thread hangs {point}")
    if point.endswith("_write"):  # after_claim has not even come to the slot: its lease expires
        no_chunk_is_blamed(cluster, job)
    is_finished_by_another(cluster, job)


@pytest.mark.parametrize("fault", ["away", "silent"])
def test_while_redis_is_of_no_use_and_threads_hang(cluster: Cluster, fault: str) -> None:
    worker, there = hanging(cluster, "mid_write")
    job = embed(cluster)
    wait_until(there.exists, "chunks are held")
    server = cluster.server.child
    server.kill() if fault == "away" else server.send(signal.SIGSTOP)
    try:
        started = time.monotonic()
        worker.process.terminate()
        code = worker.process.wait(PATIENCE_SECONDS)
        print(f"SIGTERM while Redis is {fault}: {code} after {time.monotonic() - started:.1f} s")
    finally:
        cluster.server.start_again() if fault == "away" else server.send(signal.SIGCONT)
    assert code == EXIT_HUNG or (fault, code) == ("away", 0), worker.log()
    assert fault == "away" or "drain hangs" in worker.log()
    is_finished_by_another(cluster, job)


def test_an_idle_worker_whose_redis_is_away(cluster: Cluster) -> None:
    worker = cluster.start_worker()
    cluster.server.child.kill()
    wait_until(lambda: "not reconciled" in worker.log(), "the worker reports that Redis is away")
    drains_in_time(worker, "while Redis is away")


def test_before_it_holds_anything(cluster: Cluster) -> None:
    worker = cluster.launch_worker()
    wait_until(lambda: worker.process.poll() is None and _handles_sigterm(worker.pid), "it handles SIGTERM")
    assert worker.terminate(PATIENCE_SECONDS) == 0, worker.log()


def _handles_sigterm(pid: int) -> bool:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "SigCgt" in line)
    return bool(int(line.split()[1], 16) & (1 << (signal.SIGTERM - 1)))
