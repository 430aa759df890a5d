"""Workers and commands on a failing store: chunks wait, commands fail in one line, rows are exact."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clipfleet.contract.jobs import JobState
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import JobStatus
from clipfleet.outputs import objects, open_output
from clipfleet.redis.connection import connect
from clipfleet_worker.machine.embedded.s3 import BUCKET, EmbeddedS3
from tests.support.cluster import Cluster, ends
from tests.support.http_site import HttpSite
from tests.support.images import write_images
from tests.support.leftovers import left_in_output
from tests.support.s3_front import Fault, Rule, S3Front
from tests.support.waiting import wait_until

STALE = "stale-key"
NOISE = [fault for fault in Fault if "STALL" not in fault.name and fault is not Fault.ACCESS_DENIED]
LIARS = (Fault.PRECONDITION_FAILED, Fault.WRONG_ETAG)
ATTEMPTS = 30
PATIENCE_SECONDS = 150


@pytest.fixture(scope="module")
def front(store: EmbeddedS3) -> Iterator[S3Front]:
    with S3Front(store.endpoint, seed=5) as front:
        yield front


@pytest.fixture(scope="module")
def credentials(store: EmbeddedS3, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A credentials file that is good."""
    file, known = tmp_path_factory.mktemp("credentials") / "credentials", store.environment()
    write_credentials(file, known["AWS_ACCESS_KEY_ID"], known["AWS_SECRET_ACCESS_KEY"])
    return file


def write_credentials(file: Path, key: str, secret: str) -> None:
    file.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")


@pytest.fixture(scope="module")
def fragile(
    store: EmbeddedS3, front: S3Front, credentials: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Everything in it reaches the store through the front, with keys from a file."""
    known = {name: value for name, value in store.environment().items() if "_KEY" not in name}
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


def submit(fragile: Cluster, name: str) -> None:
    """A job of twenty chunks."""
    arguments = ("embed", fragile.folder / "images", "--model", "demo", "--output", output(name))
    fragile.run_json(*arguments, "--chunk-size", "2", "--job-id", name, "--no-wait")


def wait_for(fragile: Cluster, job_id: str, is_so: Callable[[JobStatus], bool]) -> JobStatus:
    wait_until(lambda: is_so(fragile.status(job_id)), f"{job_id} is as far", PATIENCE_SECONDS)
    return fragile.status(job_id)


def wait_for_reason(fragile: Cluster, job_id: str, word: str) -> JobStatus:
    """The status once it gives the reason why the job waits."""
    return wait_for(fragile, job_id, lambda status: word in status.reason)


def wait_for_end(fragile: Cluster, job_id: str) -> JobStatus:
    return wait_for(fragile, job_id, lambda status: status.state.is_final)


def outage_began_earlier(fragile: Cluster, job_id: str, seconds: int) -> None:
    with connect(fragile.server.url) as client:
        client.hincrby(keys.job(job_id), "outage_since", -1000 * seconds)


def check_end(fragile: Cluster, job_id: str) -> None:
    """The job ends: all rows are there once, one event was sent, nothing else is left, no chunk failed."""
    ended = wait_for_end(fragile, job_id)
    assert (ended.state, ended.ok, ended.failed) == (JobState.COMPLETED, 40, 0)
    check_rows(fragile, job_id)
    assert len(ends(fragile, job_id)) == 1
    assert "chunk_failed" not in fragile.logs()


def check_rows(fragile: Cluster, job_id: str) -> None:
    rows = fragile.rows(output(job_id))
    assert [(row["item_index"], row["status"]) for row in rows] == [(number, "ok") for number in range(40)]
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
    submit(fragile, "outage")
    front.place(Rule(fault=Fault.RESET, method="PUT", path="*/outage/data/part-*", skip=3))
    fragile.living_worker()
    wait_for_reason(fragile, "outage", "s3://")
    front.place(Rule(fault=Fault.RESET))

    # When ten minutes have passed like this
    outage_began_earlier(fragile, "outage", 600)
    before = front.hits[Fault.RESET]
    wait_until(lambda: front.hits[Fault.RESET] > before + 4, "the worker has tried again", PATIENCE_SECONDS)
    found = fragile.status("outage")
    assert (found.state, found.done_chunks) == (JobState.RUNNING, 3)

    # Then the job ends by itself once the store is back, without a chunk that was given up
    healed = time.monotonic()
    front.heal()
    wait_for(fragile, "outage", lambda status: status.done_chunks > 3)
    recovery_seconds = time.monotonic() - healed
    check_end(fragile, "outage")
    all_seconds = time.monotonic() - healed
    print(f"first chunk {recovery_seconds:.1f} s after the store was back, the last {all_seconds:.1f} s")


def test_an_outage_that_lasts_too_long_pauses_the_job_until_resume(fragile: Cluster, front: S3Front) -> None:
    front.place(Rule(fault=Fault.UNAVAILABLE, path="*/paused/data/part-*"))
    submit(fragile, "paused")
    fragile.living_worker()
    wait_for_reason(fragile, "paused", "503")
    outage_began_earlier(fragile, "paused", 3700)

    paused = wait_for(fragile, "paused", lambda status: status.state is JobState.PAUSED)
    assert "503" in paused.reason
    front.heal()
    assert fragile.run_json("resume", "paused")["state"] == "running"

    check_end(fragile, "paused")


def test_a_job_that_cannot_be_finished_waits_too(fragile: Cluster, front: S3Front) -> None:
    names = (objects.MANIFEST, objects.LAYOUT.errors)
    front.place(*(Rule(fault=Fault.SLOW_DOWN, path=f"*/finishing/{name}") for name in names))
    submit(fragile, "finishing")
    fragile.living_worker()
    found = wait_for_reason(fragile, "finishing", "SlowDown")
    assert (found.state, found.done_chunks) == (JobState.FINISHING, 20)
    front.heal()

    check_end(fragile, "finishing")


@pytest.mark.figures
def test_keys_that_expire(fragile: Cluster, front: S3Front, credentials: Path, tmp_path: Path) -> None:
    # Given only a worker whose keys have expired
    fragile.stop_workers()
    own = tmp_path / "credentials"
    write_credentials(own, STALE, "secret")
    front.place(Rule(fault=Fault.EXPIRED_TOKEN, access_key=STALE))
    submit(fragile, "expired")
    worker = fragile.start_worker({"AWS_SHARED_CREDENTIALS_FILE": str(own)})

    # Then the job waits, and says why
    found = wait_for_reason(fragile, "expired", "ExpiredToken")
    assert found.state is JobState.RUNNING
    assert "renew the credentials" in found.reason

    # And the same process continues when they are renewed
    own.write_text(credentials.read_text())
    renewed = time.monotonic()
    check_end(fragile, "expired")
    assert worker.process.poll() is None
    print(f"completed {time.monotonic() - renewed:.1f} s after the credentials were renewed")


def test_every_command_comes_through_a_store_that_fails_now_and_then(
    fragile: Cluster, front: S3Front, site: HttpSite, store: EmbeddedS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a store that fails now and then in every way, and images of which some are away at first
    fragile.stop_workers()
    fragile.start_worker()
    front.place(*(Rule(fault=fault, chance=0.004) for fault in NOISE if fault not in LIARS))
    source, place = fragile.folder / "list.txt", output("noise")
    paths = [f"/{'sick' if number % 4 == 1 else 'files'}/000000.jpg" for number in range(40)]
    source.write_text("".join(f"{site.url(path)}\n" for path in paths))
    arguments = ("embed", source, "--model", "demo", "--output", place, "--chunk-size", "2")

    # When it is submitted, read, retried, forgotten by Redis and rebuilt
    until_it_succeeds(fragile, *arguments, "--job-id", "noise", "--no-wait")
    ended = wait_for_end(fragile, "noise")
    assert (ended.total, ended.ok, ended.failed) == (40, 30, 10)
    until_it_succeeds(fragile, "results", place)
    site.heal()
    until_it_succeeds(fragile, "retry", place)
    assert wait_for_end(fragile, "noise").state is JobState.COMPLETED
    assert len(ends(fragile, "noise")) == 2
    with connect(fragile.server.url) as client:
        client.flushall()
    until_it_succeeds(fragile, "rebuild", place)
    front.heal()

    # Then everything is there once
    assert wait_for_end(fragile, "noise").state is JobState.COMPLETED
    check_rows(fragile, "noise")
    for name, value in store.environment().items():
        monkeypatch.setenv(name, value)
    assert left_in_output(open_output(place)) == []
    assert len(front.hits) > 3
    print(", ".join(f"{fault.name} {count}" for fault, count in front.hits.items()))
