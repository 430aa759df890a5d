"""Stores whose programs are killed, whose disk is full, or that a newer program has written."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from clipfleet.errors import OutputTooNewError, OutputUnavailableError
from clipfleet.outputs import open_output
from clipfleet.store.maintenance.compacting import compact
from clipfleet.store.maintenance.forgetting import forget
from clipfleet.store.maintenance.vacuum import vacuum
from clipfleet.store.place import StorePlace
from tests.support.crashing_store import IN_A_MONTH
from tests.support.documents import ROOT
from tests.support.held_stores import OTHER, current, filling_job, held, item_ids, make_store
from tests.support.jobs import place_job
from tests.support.s3 import S3Bucket
from tests.support.store_rows import NO_ADDRESSES, item, make_dataset, stored_rows

DISK_BYTES = 1 << 20
A_WEEK = timedelta(days=7)


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> StorePlace:
    """A store of several nights, with vectors of an earlier model and the output of an ended job."""
    if request.param == "folder":
        uri = str(tmp_path / "store")
    else:
        bucket: S3Bucket = request.getfixturevalue("s3")
        uri = f"{bucket.uri}/store"
    place = make_store(uri, "ab", "c", "d", "e")
    make_dataset(place.dataset_uri(OTHER), [item("c")])
    job = filling_job(place, "ended")
    place_job(open_output(job.output), job)
    return place


def kill(place: StorePlace, action: str, call: str, when: str) -> None:
    """Run an action in a process that is killed at a call."""
    command = [sys.executable, "-m", "tests.support.crashing_store", place.uri, action, call, when]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


@pytest.mark.parametrize(("when", "ids"), [("before", "abcde"), ("after", "abcdez")])
def test_a_killed_commit_is_there_or_not(place: StorePlace, when: str, ids: str) -> None:
    kill(place, "replace", "commit", when)

    assert item_ids(current(place)) == [*ids]
    rows = stored_rows([item("y")]).to_batches()
    assert item_ids(current(place).replace(NO_ADDRESSES, rows, {})) == sorted([*ids, "y"])
    vacuum(held(place), A_WEEK, IN_A_MONTH)
    assert item_ids(current(place)) == sorted([*ids, "y"])


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_killed_compaction_loses_nothing(place: StorePlace, when: str) -> None:
    kill(place, "compact", "compaction", when)

    assert item_ids(current(place)) == [*"abcde"]
    (done,) = compact(held(place))
    assert (done.files, item_ids(current(place))) == (1, [*"abcde"])


@pytest.mark.parametrize(
    ("call", "when"), [("commit", "after"), ("cleanup", "before"), ("cleanup", "after"), ("removal", "after")]
)
def test_a_killed_vacuum_goes_on_the_next_time(place: StorePlace, call: str, when: str) -> None:
    kill(place, "replace", "commit", "before")  # so that there are files of no version
    kill(place, "vacuum", call, when)
    assert item_ids(current(place)) == [*"abcde"]

    vacuum(held(place), A_WEEK, IN_A_MONTH)
    vacuum(held(place), A_WEEK, IN_A_MONTH)

    assert item_ids(current(place)) == [*"abcde"]
    assert len(current(place).times()) == 1
    assert not current(place).has_leftovers(IN_A_MONTH)
    with pytest.raises(FileNotFoundError):
        current(place, OTHER)
    assert [*open_output(place.job_output("ended")).names("_clipfleet/")] == []


@pytest.mark.parametrize(
    ("call", "when"), [("commit", "before"), ("commit", "after"), ("cleanup", "before"), ("cleanup", "after")]
)
def test_a_killed_erasure_goes_on_the_next_time(place: StorePlace, call: str, when: str) -> None:
    kill(place, "forget", call, when)

    forget(held(place), ["c"])

    assert item_ids(current(place)) == [*"abde"]
    assert item_ids(current(place, OTHER)) == []
    for dataset in (current(place), current(place, OTHER)):
        for version in dataset.times():
            earlier = type(dataset).open(dataset.uri, version)
            assert "c" not in item_ids(earlier)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_is_said_and_changes_nothing(disk: Path) -> None:
    place = make_store(disk / "store", "ab", "c", "d")
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    many = [item(f"{number:06}" * 20) for number in range(2000)]

    with pytest.raises(OutputUnavailableError, match="the disk is full; nothing was changed"):
        current(place).replace(NO_ADDRESSES, stored_rows(many).to_batches(), {})
    with pytest.raises(OutputUnavailableError, match="the disk is full"):
        compact(held(place))
    with pytest.raises(OutputUnavailableError, match="the disk is full"):
        forget(held(place), ["a"])
    assert item_ids(current(place)) == [*"abcd"]

    ballast.unlink()
    compact(held(place))
    forget(held(place), ["a"])
    assert item_ids(current(place)) == [*"bcd"]


def test_a_dataset_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    """Its manifest names a feature that this version of Lance does not know."""
    place = make_store(tmp_path / "store", "ab")
    newest = min(Path(current(place).uri, "_versions").glob("*.manifest"))
    data = newest.read_bytes()
    (position,) = struct.unpack("<Q", data[-16:-8])
    (length,) = struct.unpack("<I", data[position : position + 4])
    message, rest = data[position + 4 : position + 4 + length], data[position + 4 + length :]
    message += bytes([9 << 3, 0x80, 0x80, 0x80, 0x01])  # field 9: flags of readers
    newest.write_bytes(data[:position] + struct.pack("<I", len(message)) + message + rest)

    with pytest.raises(OutputTooNewError, match="a newer version of Lance wrote it"):
        current(place)
    for work in (compact, lambda store: vacuum(store, A_WEEK), lambda store: forget(store, ["a"])):
        with pytest.raises(OutputTooNewError):
            work(held(place))
