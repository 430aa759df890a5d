"""Real workers whose output folder fails: a full disk, a limit on files, a read-only mount, a folder gone."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clipfleet.contract.jobs import JobState
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import JobStatus, Ledger
from tests.support.cluster import Cluster, job_events
from tests.support.images import write_images
from tests.support.waiting import wait_until

PATIENCE_SECONDS = 150
DISK_BYTES = 2 << 20


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    settings = {"CLIPFLEET_LEASE_SECONDS": "6", "CLIPFLEET_RECONCILE_SECONDS": "0.5"}
    with Cluster(tmp_path_factory.mktemp("folder-faults"), settings) as running:
        write_images(running.folder / "images", 40)
        yield running


@pytest.fixture
def disk(cluster: Cluster) -> Iterator[Path]:
    """A small file system of its own, where tests may mount one."""
    folder = cluster.folder / "disk"
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def status(cluster: Cluster, job_id: str) -> JobStatus:
    ledger = Ledger(cluster.server.url)
    try:
        return ledger.status(job_id)
    finally:
        ledger.close()


def wait_for(cluster: Cluster, job_id: str, what: str, is_so: Callable[[JobStatus], bool]) -> JobStatus:
    wait_until(lambda: is_so(status(cluster, job_id)), f"{what}: {job_id}", PATIENCE_SECONDS)
    return status(cluster, job_id)


def submit(cluster: Cluster, output: Path, name: str) -> None:
    """A job of twenty chunks."""
    cluster.run_json(
        "embed", cluster.folder / "images", "--model", "demo", "--output", output, "--chunk-size", "2",
        "--job-id", name, "--no-wait",
    )  # fmt: skip


def ensure_worker(cluster: Cluster) -> None:
    if not any(worker.process.poll() is None for worker in cluster.workers):
        cluster.start_worker()


def stop_workers(cluster: Cluster) -> None:
    for worker in cluster.workers:
        if worker.process.poll() is None:
            assert worker.terminate() == 0, worker.log()


def check_end(cluster: Cluster, output: Path, job_id: str) -> None:
    """Every row is there once, whole, with one event, and nothing else."""
    ended = wait_for(cluster, job_id, "the job ends", lambda found: found.state.is_final)
    assert (ended.state, ended.ok, ended.failed) == (JobState.COMPLETED, 40, 0), ended.reason
    result = cluster.run("results", output, "--format", "jsonl")
    assert result.returncode == 0, result.stderr
    assert [json.loads(line)["item_index"] for line in result.stdout.splitlines()] == list(range(40))
    assert len(job_events(cluster, job_id)) == 1
    assert list((output / keys.TMP).iterdir()) == []
    assert "Traceback" not in cluster.logs()


def fill(folder: Path) -> Path:
    """Take all the room of a file system."""
    ballast = folder / "ballast"
    descriptor = os.open(ballast, os.O_WRONLY | os.O_CREAT)
    try:
        while os.write(descriptor, bytes(4096)):
            pass
    except OSError as error:
        assert error.errno == errno.ENOSPC
    finally:
        os.close(descriptor)
    return ballast


@pytest.mark.figures
def test_a_full_disk_is_waited_for(cluster: Cluster, disk: Path) -> None:
    stop_workers(cluster)
    submit(cluster, disk / "output", "full")
    ballast = fill(disk)
    ensure_worker(cluster)
    found = wait_for(
        cluster, "full", "the status gives the reason", lambda found: "No space left" in found.reason
    )
    assert found.state is JobState.RUNNING
    assert all(path.stat().st_size for path in (disk / "output").glob("part-*"))  # none is half written

    room = time.monotonic()
    ballast.unlink()

    check_end(cluster, disk / "output", "full")
    print(f"completed {time.monotonic() - room:.1f} s after there was room again")


def test_a_disk_that_is_full_during_a_submit_is_reported_and_the_same_command_resumes(
    cluster: Cluster, disk: Path
) -> None:
    (disk / "output").mkdir()
    ballast = fill(disk)
    arguments = (
        "embed", cluster.folder / "images", "--model", "demo", "--output", disk / "output",
        "--job-id", "late",
    )  # fmt: skip
    result = cluster.run(*arguments)
    assert (result.returncode, "No space left" in result.stderr) == (1, True), result.stderr
    assert "Traceback" not in result.stderr

    ballast.unlink()
    ensure_worker(cluster)
    assert cluster.run(*arguments).returncode == 0

    check_end(cluster, disk / "output", "late")


def test_a_disk_that_turns_read_only_ends_the_job_with_its_reason_and_a_retry_resumes(
    cluster: Cluster, disk: Path
) -> None:
    stop_workers(cluster)
    output = disk / "output"
    submit(cluster, output, "read-only")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    ensure_worker(cluster)

    ended = wait_for(cluster, "read-only", "the job ends", lambda found: found.state.is_final)
    assert ended.state is JobState.FAILED
    assert "Read-only file system" in ended.reason

    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert cluster.run("retry", "read-only").returncode == 0
    again = wait_for(cluster, "read-only", "the retry ends", lambda found: found.state.is_final)
    assert (again.state, again.ok) == (JobState.COMPLETED, 40)


def test_a_folder_that_disappears_ends_the_job_with_its_reason_until_it_is_back(cluster: Cluster) -> None:
    # Given two jobs without a worker; the folder of one goes, in the place of the other's lies a file
    stop_workers(cluster)
    gone, replaced = cluster.folder / "gone", cluster.folder / "replaced"
    for output in (gone, replaced):
        submit(cluster, output, output.name)
        output.rename(cluster.folder / f"hidden-{output.name}")
    replaced.write_bytes(b"not a folder")

    # When a worker comes
    ensure_worker(cluster)

    # Then they fail with the reason, and nothing is made in their place
    for output in (gone, replaced):
        ended = wait_for(cluster, output.name, "the job ends", lambda found: found.state.is_final)
        assert (ended.state, ended.reason.split(":")[0]) == (JobState.FAILED, "output_unreachable")
    assert (gone.exists(), replaced.read_bytes()) == (False, b"not a folder")

    # And once the folders are back, a retry resumes
    replaced.unlink()
    for output in (gone, replaced):
        (cluster.folder / f"hidden-{output.name}").rename(output)
        assert cluster.run("retry", output.name).returncode == 0
        again = wait_for(cluster, output.name, "the retry ends", lambda found: found.state.is_final)
        assert (again.state, again.ok) == (JobState.COMPLETED, 40)


LIMITED_WORKER = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
from clipfleet_worker.__main__ import main
sys.argv = ["clipfleet-worker", "run"]
sys.exit(main())
"""


def test_a_limit_on_the_size_of_files_is_waited_for_without_any_privilege(cluster: Cluster) -> None:
    """Stands for a quota: writing fails half-way, with another error than a full disk."""
    stop_workers(cluster)
    output = cluster.folder / "limited"
    submit(cluster, output, "limited")
    with (cluster.folder / "limited-worker.log").open("wb") as log:
        limited = subprocess.Popen(
            [sys.executable, "-c", LIMITED_WORKER],
            env=cluster.environment(),
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
    try:
        found = wait_for(
            cluster, "limited", "the status gives the reason", lambda found: "File too large" in found.reason
        )
        assert found.state is JobState.RUNNING
        assert list(output.glob("part-*")) == []
    finally:
        limited.terminate()
        limited.wait(60)
    ensure_worker(cluster)

    check_end(cluster, output, "limited")
    shutil.rmtree(output)
