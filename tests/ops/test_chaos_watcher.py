"""What `make chaos` sees of a folder while jobs write there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from ops.chaos.changes import Act, Change
from ops.chaos.watcher import FolderWatcher
from tests.support.waiting import wait_until

PART = "data/part-00000000.parquet"


@pytest.fixture
def watcher(tmp_path: Path) -> Iterator[FolderWatcher]:
    with FolderWatcher(tmp_path) as watcher:
        yield watcher


@pytest.fixture
def output(tmp_path: Path, watcher: FolderWatcher) -> FolderOutput:
    folder = tmp_path / "job"
    folder.mkdir()
    wait_until(lambda: watcher.watched == {"job"}, "the new folder is watched")
    return FolderOutput(folder)


def has_seen(watcher: FolderWatcher, *acts: Act, name: str = PART) -> None:
    wanted = [Change("job", name, act) for act in acts]
    wait_until(lambda: watcher.changes == wanted, f"{wanted} is seen")


def test_a_part_that_is_put_in_place_appears_once(output: FolderOutput, watcher: FolderWatcher) -> None:
    assert output.create(PART, b"rows")
    assert not output.create(PART, b"others")
    has_seen(watcher, Act.APPEARED)

    output.replace(PART, b"others")
    has_seen(watcher, Act.APPEARED, Act.APPEARED)

    output.remove(PART)
    has_seen(watcher, Act.APPEARED, Act.APPEARED, Act.REMOVED)


def test_what_is_written_in_place_is_distinguished(output: FolderOutput, watcher: FolderWatcher) -> None:
    Path(output.uri, PART).parent.mkdir()
    wait_until(lambda: "job/data" in watcher.watched, "the folder of the rows is watched")
    Path(output.uri, PART).write_bytes(b"rows")

    has_seen(watcher, Act.APPEARED, Act.MODIFIED)


def test_a_job_file_is_seen_that_replaces_another_one(output: FolderOutput, watcher: FolderWatcher) -> None:
    output.create(objects.JOB_FILE, b"before")
    version = output.version(objects.JOB_FILE)
    assert version
    wait_until(lambda: watcher.watched == {"job", "job/_clipfleet"}, "the folder of the job file is watched")

    with output.scratch() as path:
        path.write_bytes(b"after")
        assert output.replace_if(path, objects.JOB_FILE, version)

    has_seen(watcher, Act.APPEARED, name=objects.JOB_FILE)
