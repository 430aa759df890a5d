"""What every output promises, see `clipfleet.outputs.Output`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clipfleet.errors import JobConflictError, OutputUnavailableError
from clipfleet.outputs import Output, objects
from clipfleet.outputs.bound_folder import BoundFolderOutput
from clipfleet.outputs.folder import FolderOutput
from clipfleet.outputs.redis import RedisOutput
from clipfleet.outputs.s3 import s3_output
from clipfleet.s3.client import make_client
from tests.support.doubles import PATIENCE_SECONDS
from tests.support.redis_rows import submit_job

pytestmark = pytest.mark.long

WRITERS = 12
PLACES = ("folder", "bound folder", "s3")  # with names of their own; the other one is the ledger's Redis


@pytest.fixture(params=[*PLACES, "redis"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Output:
    match request.param:
        case "folder":
            return FolderOutput(tmp_path / "out")
        case "bound folder":
            (tmp_path / "out" / objects.INTERNAL).mkdir(parents=True)
            return BoundFolderOutput(tmp_path / "out", [tmp_path.resolve()])
        case "s3":
            return s3_output(f"{request.getfixturevalue('s3').uri}/jobs/one", make_client())
    submit_job(request.getfixturevalue("redis_ledger"), sealed=False)
    return RedisOutput(request.getfixturevalue("store"), "job")


in_places = pytest.mark.parametrize("output", PLACES, indirect=True)


def with_scratch(output: Output, data: bytes, change: Callable[[Path], bool]) -> bool:
    with output.scratch() as path:
        path.write_bytes(data)
        return change(path)


def publish(output: Output, name: str, data: bytes, *, replace: bool = False) -> bool:
    return with_scratch(output, data, lambda path: output.publish(path, name, replace=replace))


def replace_if(output: Output, name: str, version: str, data: bytes) -> bool:
    return with_scratch(output, data, lambda path: output.replace_if(path, name, version))


def all_names(output: Output) -> list[str]:
    folders = ("", objects.LAYOUT.data, f"{objects.INTERNAL}/", f"{objects.TMP}/")
    found = [name for folder in folders for name in output.names(folder)]
    return sorted(name for name in found if not name.endswith("/"))  # SeaweedFS lists emptied folders


def winners(call: Callable[[int], bool]) -> list[int]:
    """The writers that succeed, of many that start together."""
    barrier = threading.Barrier(WRITERS)

    def one(number: int) -> bool:
        barrier.wait(PATIENCE_SECONDS)
        try:
            return call(number)
        except OutputUnavailableError:  # another writer holds the lock of the object
            return False

    with ThreadPoolExecutor(WRITERS) as pool:
        return [number for number, won in enumerate(pool.map(one, range(WRITERS))) if won]


@pytest.mark.parametrize("size", [0, 3, 5_000_000])
def test_what_is_created_is_read(output: Output, size: int) -> None:
    data = bytes(range(251)) * (size // 251 + 1)
    assert output.create("a", data[:size])

    assert output.read("a") == data[:size]
    with output.open("a") as file:
        assert file.size() == size
        file.seek(size // 2)
        assert file.read() == data[size // 2 : size]


def test_a_taken_name_keeps_its_object(output: Output) -> None:
    assert publish(output, "a", b"first")

    assert not publish(output, "a", b"second")
    assert not output.create("a", b"third")
    assert output.read("a") == b"first"


def test_replacing_needs_no_object_and_no_version(output: Output) -> None:
    for data in (b"one", b"two"):
        output.replace("a", data)
        assert output.read("a") == data
        assert publish(output, "b", data, replace=True)
        assert output.read("b") == data


def test_only_the_version_that_was_seen_is_replaced(output: Output) -> None:
    output.create("a", b"one")
    seen = output.version("a") or ""

    assert replace_if(output, "a", seen, b"two")
    assert not replace_if(output, "a", seen, b"three")
    assert output.read("a") == b"two"


def test_a_removed_object_is_gone_and_not_replaced(output: Output) -> None:
    output.create("a", b"one")
    seen = output.version("a") or ""
    for _ in range(2):
        output.remove("a")

    assert (output.read("a"), output.version("a"), list(output.names(""))) == (None, None, [])
    with pytest.raises(FileNotFoundError):
        output.open("a")
    assert not replace_if(output, "a", seen, b"two")
    assert output.create("a", b"two")


def test_names_are_sorted_and_start_with_the_prefix(output: Output) -> None:
    for name in (
        objects.LAYOUT.part(10),
        objects.LAYOUT.part(2),
        "other",
        objects.LAYOUT.staged_file(2, 1),
        objects.LAYOUT.staged_file(0, 2),
    ):
        output.create(name, b"x")

    assert list(output.names(objects.LAYOUT.part_prefix)) == [objects.LAYOUT.part(2), objects.LAYOUT.part(10)]
    assert list(output.names(objects.STAGED_PREFIX)) == [
        objects.LAYOUT.staged_file(0, 2),
        objects.LAYOUT.staged_file(2, 1),
    ]
    assert list(output.names("nothing")) == list(output.names("nowhere/x")) == []


@in_places
def test_names_in_deeper_folders_are_not_listed(output: Output) -> None:
    for name in (objects.MANIFEST, objects.LAYOUT.part(0), objects.LAYOUT.staged_file(0, 1)):
        output.create(name, b"x")

    assert list(output.names("")) == [objects.MANIFEST]


def test_folders_are_those_directly_below(output: Output) -> None:
    for name in ("a/2/x", "a/1/deep/x", "a/1/y", "a/file", "b/3/x"):
        output.create(name, b"x")

    assert list(output.folders("a")) == ["1", "2"]
    assert list(output.folders("a/1")) == ["deep"]
    assert list(output.folders("none")) == list(output.folders("a/2")) == []


def test_of_many_creators_one_wins_and_its_bytes_stay(output: Output) -> None:
    for name in map(objects.LAYOUT.part, range(5)):
        (winner,) = winners(lambda number, name=name: output.create(name, b"%02d" % number * 50_000))  # type: ignore[misc]

        assert output.read(name) == b"%02d" % winner * 50_000


def test_of_many_writers_that_saw_one_version_one_wins(output: Output) -> None:
    output.create("a", b"old")
    seen = output.version("a") or ""

    found = winners(lambda number: replace_if(output, "a", seen, b"%d" % number))

    assert [output.read("a")] == [b"%d" % winner for winner in found]


def test_nothing_is_changed_that_is_not_confirmed(output: Output) -> None:
    def confirm() -> None:
        raise JobConflictError("lost")

    output.create("there", b"before")
    seen = output.version("there") or ""
    changes: list[Callable[[Path], object]] = [
        lambda _: output.create("a", b"x", confirm=confirm),
        lambda _: output.replace("there", b"x", confirm=confirm),
        lambda path: output.publish(path, "a", confirm=confirm),
        lambda path: output.publish(path, "there", replace=True, confirm=confirm),
        lambda path: output.replace_if(path, "there", seen, confirm=confirm),
    ]
    for change in changes:
        with output.scratch() as path:
            path.write_bytes(b"scratch")
            with pytest.raises(JobConflictError, match="lost"):
                change(path)

    assert list(output.names("")) == ["there"]
    assert output.read("there") == b"before"


@in_places
def test_clearing_leaves_the_job_file_what_identifies_late_parts_and_foreign_files(output: Output) -> None:
    footer = objects.detached_footer(objects.LAYOUT.part(0, "jsonl"), "job", "ab")
    kept = [objects.JOB_FILE, objects.CLEARING, footer, "notes.txt"]
    gone = [
        objects.STAGED_FILES, objects.GENERATION, objects.LAYOUT.staged_file(0, 1), objects.LAYOUT.part(0),
        objects.SUCCESS, objects.LAYOUT.errors, objects.MANIFEST, f"{objects.TMP}/canary",
    ]  # fmt: skip
    for name in (*kept, *gone):
        output.create(name, b"x")

    for _ in range(2):
        output.clear()

    assert all_names(output) == sorted(kept)


@in_places
def test_sweeping_removes_leftovers_and_keeps_what_is_named(output: Output) -> None:
    kept = [objects.JOB_FILE, objects.LAYOUT.staged_file(0, 2), objects.LAYOUT.part(0), objects.SUCCESS]
    for name in [*kept, objects.LAYOUT.staged_file(2, 1), f"{objects.TMP}/half"]:
        output.create(name, b"x")

    for _ in range(2):
        output.sweep([objects.LAYOUT.staged_file(0, 2)])

    assert all_names(output) == sorted(kept)


@in_places
def test_a_folder_without_objects_is_removed(output: Output, tmp_path: Path) -> None:
    for name in ("a/b/one", "a/c/two"):
        if isinstance(output, BoundFolderOutput):
            (tmp_path / "out" / name).parent.mkdir(parents=True)
        output.create(name, b"x")
    output.remove("a/b/one")
    output.remove_folder("a")
    assert output.read("a/c/two") == b"x"

    output.remove("a/c/two")
    for _ in range(2):
        output.remove_folder("a")

    assert isinstance(output, BoundFolderOutput) or not (tmp_path / "out" / "a").exists()


def test_scratch_files_that_are_written_to_may_be_kept(output: Output) -> None:
    with output.scratch() as fresh:
        fresh.write_bytes(b"x")
        output.sweep_scratch(idle_seconds=3600)

        assert output.publish(fresh, objects.MANIFEST)

    with output.scratch() as stale:
        stale.write_bytes(b"x")
        os.utime(stale, (0, 0))
        output.sweep_scratch(idle_seconds=3600)

        assert not stale.exists() or not isinstance(output, FolderOutput), "others keep them to themselves"


def test_sweeping_where_there_is_nothing_is_no_error(output: Output) -> None:
    output.sweep([])
    output.sweep_scratch()
