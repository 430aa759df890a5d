"""SIGTERM at bad moments: the worker exits with 0 in time, and the chunks it held are due at once."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from clipfleet.client import Client, JobOptions
from clipfleet.job_handle import JobHandle
from clipfleet.ledger import keys
from clipfleet.redis.connection import connect
from clipfleet_worker.process.watchdog import EXIT_HUNG
from tests.support.cluster import Cluster, WorkerProcess
from tests.support.http_site import HttpSite
from tests.support.images import write_images
from tests.support.waiting import wait_until

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


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    with Client(cluster.client_settings()) as client:
        yield client


def embed(cluster: Cluster, client: Client, chunk_size: int = 8) -> JobHandle:
    options = JobOptions(output=cluster.folder / "out", model="demo", chunk_size=chunk_size)
    return client.embed(cluster.folder / "images", options=options)


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


def is_finished_by_another(cluster: Cluster, job: JobHandle, total: int = IMAGES) -> None:
    cluster.start_worker()
    status = job.wait(120)
    assert (status.state, status.ok) == ("completed", total), cluster.logs()
    assert [row["item_index"] for row in job.results()] == list(range(total))


@pytest.mark.figures
def test_full_of_urls_that_do_not_answer(cluster: Cluster, client: Client) -> None:
    with HttpSite() as site:
        worker = cluster.start_worker({"CLIPFLEET_HOST_CONNECTIONS": "64"})
        urls = [site.url(f"/stall?{number}") for number in range(200)]
        options = JobOptions(output=cluster.folder / "out", model="demo", chunk_size=50)
        job = client.embed(urls, options=options)
        wait_until(lambda: site.open_connections >= 50, "many requests are open")
        drains_in_time(worker, "while 200 URLs do not answer")
        no_chunk_is_blamed(cluster, job)
        assert job.status().due_chunks == 4


@pytest.mark.figures
def test_while_the_model_loads(cluster: Cluster, client: Client) -> None:
    loading = cluster.folder / "loading"
    worker = cluster.start_worker(program=(CRASHING, "load", "hang", str(loading)))
    job = embed(cluster, client)
    wait_until(lambda: loading.exists() and job.status().leased_chunks == 5, "all wait for the model")
    drains_in_time(worker, "while the model loads")
    no_chunk_is_blamed(cluster, job)
    is_finished_by_another(cluster, job)


@pytest.mark.figures
@pytest.mark.parametrize(
    "numbers", [(signal.SIGINT, signal.SIGQUIT), (signal.SIGQUIT,), (signal.SIGHUP, signal.SIGINT)]
)
def test_by_whatever_signal(cluster: Cluster, client: Client, numbers: Sequence[signal.Signals]) -> None:
    loading = cluster.folder / "loading"
    worker = cluster.start_worker(program=(CRASHING, "load", "hang", str(loading)))
    job = embed(cluster, client)
    wait_until(lambda: loading.exists() and job.status().leased_chunks == 5, "all wait for the model")
    drains_in_time(worker, "while the model loads", numbers)
    no_chunk_is_blamed(cluster, job)


@pytest.mark.figures
@pytest.mark.parametrize("point", ["after_claim", "mid_write", "after_write"])
def test_while_a_thread_hangs(cluster: Cluster, client: Client, point: str) -> None:
    there = cluster.folder / "there"
    worker = cluster.start_worker(program=(CRASHING, point, "hang", str(there)))
    job = embed(cluster, client)
    wait_until(there.exists, "a thread hangs")
    drains_in_time(worker, f"while a thread hangs {point}")
    if point != "after_claim":  # there the claim has not even come to the slot: its lease expires
        no_chunk_is_blamed(cluster, job)
    is_finished_by_another(cluster, job)


@pytest.mark.figures
def test_while_a_job_is_finished(cluster: Cluster, client: Client) -> None:
    there = cluster.folder / "there"
    worker = cluster.start_worker(program=(CRASHING, "mid_finish", "hang", str(there)))
    job = embed(cluster, client)
    wait_until(there.exists, "the job is being finished")
    drains_in_time(worker, "while a job is finished")
    is_finished_by_another(cluster, job)


@pytest.mark.figures
def test_while_redis_is_away(cluster: Cluster, client: Client) -> None:
    there = cluster.folder / "there"
    worker = cluster.start_worker(program=(CRASHING, "mid_write", "hang", str(there)))
    job = embed(cluster, client)
    wait_until(there.exists, "chunks are held")
    cluster.server.child.kill()
    started = time.monotonic()
    worker.process.terminate()
    code = worker.process.wait(PATIENCE_SECONDS)
    assert code in (0, EXIT_HUNG), worker.log()
    print(f"SIGTERM while Redis is away and threads hang: {code} after {time.monotonic() - started:.1f} s")
    cluster.server.start_again()
    is_finished_by_another(cluster, job)


@pytest.mark.figures
def test_an_idle_worker_whose_redis_is_away(cluster: Cluster) -> None:
    worker = cluster.start_worker()
    cluster.server.child.kill()
    wait_until(lambda: "not reconciled" in worker.log(), "the worker reports that Redis is away")
    drains_in_time(worker, "while Redis is away")


@pytest.mark.figures
def test_a_silent_redis_does_not_keep_the_process(cluster: Cluster, client: Client) -> None:
    there = cluster.folder / "there"
    worker = cluster.start_worker(program=(CRASHING, "mid_write", "hang", str(there)))
    job = embed(cluster, client)
    wait_until(there.exists, "chunks are held")
    cluster.server.child.send(signal.SIGSTOP)
    try:
        started = time.monotonic()
        worker.process.terminate()
        assert worker.process.wait(PATIENCE_SECONDS) == EXIT_HUNG, worker.log()
        print(f"SIGTERM while Redis is silent: {EXIT_HUNG} after {time.monotonic() - started:.1f} s")
        assert "drain hangs" in worker.log()
    finally:
        cluster.server.child.send(signal.SIGCONT)
    is_finished_by_another(cluster, job)


def test_before_it_holds_anything(cluster: Cluster) -> None:
    worker = cluster.launch_worker()
    wait_until(lambda: worker.process.poll() is None and _handles_sigterm(worker.pid), "it handles SIGTERM")
    assert worker.terminate(PATIENCE_SECONDS) == 0, worker.log()


def _handles_sigterm(pid: int) -> bool:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "SigCgt" in line)
    return bool(int(line.split()[1], 16) & (1 << (signal.SIGTERM - 1)))
