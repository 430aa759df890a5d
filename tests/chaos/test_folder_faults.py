"""Real workers whose output folder fails: a full disk, a limit on files, a read-only mount, a folder gone."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clipfleet.contract.jobs import JobState
from clipfleet.ledger.jobs import JobStatus
from clipfleet.outputs import objects
from tests.support.cluster import Cluster, ends
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


def wait_for(cluster: Cluster, job_id: str, is_so: Callable[[JobStatus], bool]) -> JobStatus:
    wait_until(lambda: is_so(cluster.status(job_id)), f"{job_id} is as far", PATIENCE_SECONDS)
    return cluster.status(job_id)


def end_of(cluster: Cluster, job_id: str) -> JobStatus:
    return wait_for(cluster, job_id, lambda status: status.state.is_final)


def submit(cluster: Cluster, output: Path, name: str) -> None:
    """A job of twenty chunks."""
    cluster.embed(cluster.folder / "images", output, chunk_size=2, job_id=name)


def check_end(cluster: Cluster, output: Path, job_id: str) -> None:
    """Every row is there once, whole, with one event, and nothing else."""
    ended = end_of(cluster, job_id)
    assert (ended.state, ended.ok, ended.failed) == (JobState.COMPLETED, 40, 0), ended.reason
    assert [row["item_index"] for row in cluster.rows(output)] == list(range(40))
    assert len(ends(cluster, job_id)) == 1
    assert list((output / objects.TMP).iterdir()) == []
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
    cluster.stop_workers()
    submit(cluster, disk / "output", "full")
    ballast = fill(disk)
    cluster.start_worker()
    found = wait_for(cluster, "full", lambda status: "No space left" in status.reason)
    assert found.state is JobState.RUNNING
    assert all(path.stat().st_size for path in (disk / "output").glob("data/part-*"))  # none is half written

    room = time.monotonic()
    ballast.unlink()

    check_end(cluster, disk / "output", "full")
    print(f"completed {time.monotonic() - room:.1f} s after there was room again")


def test_a_disk_that_is_full_during_a_submit(cluster: Cluster, disk: Path) -> None:
    output = disk / "output"
    output.mkdir()
    ballast = fill(disk)
    command = ("embed", cluster.folder / "images", "--model", "demo", "--output", output, "--job-id", "late")
    result = cluster.run(*command)
    assert (result.returncode, "No space left" in result.stderr) == (1, True), result.stderr
    assert "Traceback" not in result.stderr

    ballast.unlink()
    cluster.living_worker()
    assert cluster.run(*command).returncode == 0

    check_end(cluster, output, "late")


def test_a_disk_that_turns_read_only_ends_the_job_until_a_retry(cluster: Cluster, disk: Path) -> None:
    cluster.stop_workers()
    submit(cluster, disk / "output", "read-only")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    cluster.start_worker()

    ended = end_of(cluster, "read-only")
    assert (ended.state, "Read-only file system" in ended.reason) == (JobState.FAILED, True)

    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert cluster.run("retry", "read-only").returncode == 0
    again = end_of(cluster, "read-only")
    assert (again.state, again.ok) == (JobState.COMPLETED, 40)


def test_a_folder_that_disappears_ends_the_job_with_its_reason_until_it_is_back(cluster: Cluster) -> None:
    # Given two jobs without a worker; the folder of one goes, in the place of the other's lies a file
    cluster.stop_workers()
    gone, replaced = cluster.folder / "gone", cluster.folder / "replaced"
    for output in (gone, replaced):
        submit(cluster, output, output.name)
        output.rename(cluster.folder / f"hidden-{output.name}")
    replaced.write_bytes(b"not a folder")

    # When a worker comes
    cluster.start_worker()

    # Then they fail with the reason, and nothing is made in their place
    for output in (gone, replaced):
        ended = end_of(cluster, output.name)
        assert (ended.state, ended.reason.split(":")[0]) == (JobState.FAILED, "output_unreachable")
    assert (gone.exists(), replaced.read_bytes()) == (False, b"not a folder")

    # And once the folders are back, a retry resumes
    replaced.unlink()
    for output in (gone, replaced):
        (cluster.folder / f"hidden-{output.name}").rename(output)
        assert cluster.run("retry", output.name).returncode == 0
        again = end_of(cluster, output.name)
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
    cluster.stop_workers()
    output = cluster.folder / "limited"
    submit(cluster, output, "limited")
    with (cluster.folder / "limited-worker.log").open("wb") as log:
        command = [sys.executable, "-c", LIMITED_WORKER]
        limited = subprocess.Popen(command, env=cluster.environment(), stdout=subprocess.DEVNULL, stderr=log)
    try:
        found = wait_for(cluster, "limited", lambda status: "File too large" in status.reason)
        assert found.state is JobState.RUNNING
        assert list(output.glob("data/part-*")) == []
    finally:
        limited.terminate()
        limited.wait(60)
    cluster.start_worker()

    check_end(cluster, output, "limited")
    shutil.rmtree(output)
