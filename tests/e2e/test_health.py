"""`/healthz`, `/readyz` and `/metrics` of a real worker: through its start, an outage, a hang and its end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clipfleet_worker.process.watchdog import EXIT_HUNG
from tests.support.cluster import Cluster, WorkerProcess
from tests.support.health_pages import ask, scrape
from tests.support.images import write_images
from tests.support.metrics_page import OF_PROMETHEUS, OF_THE_GATEWAY, all_expressions, named_in
from tests.support.waiting import wait_until


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    settings = {
        "CLIPFLEET_HEALTH_PORT": "0",
        "CLIPFLEET_RECONCILE_SECONDS": "0.5",
        "CLIPFLEET_LEASE_SECONDS": "4",
    }
    with Cluster(tmp_path, settings) as cluster:
        write_images(tmp_path / "images", 20)
        yield cluster


def test_from_the_start_through_an_outage_to_the_end(cluster: Cluster) -> None:
    worker = cluster.start_worker()
    wait_until(lambda: ask(worker, "readyz")[0] == 200, "it is ready")
    assert cluster.embed(cluster.folder / "images", cluster.folder / "out", chunk_size=5).wait(60).ok == 20
    check_metrics(worker)
    code, report = ask(worker, "healthz")
    assert (code, report["chunks_completed"], report["problems"]) == (200, 4, [])
    loops = {phase["loop"] for phase in report["phases"]}
    assert loops >= {
        "hints", "lease keeper", "reconciler", "puller", "announcer", "courier", "batcher",
        "fetch loop", "drain",
    }  # fmt: skip

    cluster.server.child.kill()
    wait_until(lambda: ask(worker, "readyz")[0] == 503, "it is not ready without Redis")
    assert ask(worker, "readyz")[1]["obstacles"] == ["Redis is away"]
    assert ask(worker, "healthz")[0] == 200  # nothing that a new process would do better
    values = scrape(worker)
    assert values["clipfleet_redis_up"] == {(): 0}
    assert "clipfleet_ledger_chunks" not in values  # an old figure would look like work that stands still
    cluster.server.start_again()
    wait_until(lambda: ask(worker, "readyz")[0] == 200, "it is ready again")
    assert worker.terminate() == 0


def check_metrics(worker: WorkerProcess) -> None:
    """All that dashboard and alerts ask a worker for is there, and four chunks of five images are counted."""
    wait_until(lambda: "clipfleet_ledger_jobs" in scrape(worker), "the ledger's figures are there")
    values = scrape(worker)
    named = set().union(*map(named_in, all_expressions().values())) - OF_PROMETHEUS
    asked_for = {name for name in named if not name.startswith(OF_THE_GATEWAY)}
    assert len(asked_for) > 30
    assert asked_for - set(values) == set()
    assert values["clipfleet_items_total"][("code", ""), ("outcome", "ok")] == 20
    assert values["clipfleet_chunks_total"][(("end", "done"),)] == 4
    assert values["clipfleet_chunk_seconds_count"] == {(): 4}
    assert {dict(labels)["step"] for labels in values["clipfleet_work_seconds_total"]} >= {
        "fetch", "decode", "encode", "write",
    }  # fmt: skip
    assert values["clipfleet_batched_items_total"] == {(): 20}
    assert values["clipfleet_loaded_models"] == {(): 1}
    assert values["clipfleet_memory_bytes"][()] > 0
    assert (values["clipfleet_ready"], values["clipfleet_redis_up"]) == ({(): 1}, {(): 1})


def test_a_chunk_that_hangs_is_reported_then_the_process_ends(cluster: Cluster) -> None:
    there = cluster.folder / "there"
    program = ("tests.support.altered_worker", "mid_write", "hang", str(there), "1")
    worker = cluster.start_worker(program=program)
    job = cluster.embed(cluster.folder / "images", cluster.folder / "out", chunk_size=20)
    wait_until(lambda: ask(worker, "healthz")[0] == 503 and there.exists(), "it is reported")
    assert worker.process.wait(60) == EXIT_HUNG, worker.log()
    assert "write takes more than" in worker.log()
    assert "crash_points.py" in worker.log()  # the stack of the thread that hangs

    cluster.start_worker()
    assert job.wait(120).ok == 20
