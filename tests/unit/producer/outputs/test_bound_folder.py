"""A folder output below roots: an output like any other, and no link leads out of it, whenever it is made."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from clipfleet.errors import OutputUnavailableError, OutputUnreachableError
from clipfleet.outputs import objects
from clipfleet.outputs.bound_folder import BoundFolderOutput
from clipfleet.outputs.folder import FolderOutput

SECRET = b"secret"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that looks like an output, and holds a file that nobody may see or change."""
    folder = tmp_path / "outside"
    (folder / objects.TMP).mkdir(parents=True)
    (folder / "part-1").write_bytes(SECRET)
    (folder / objects.TMP / "kept").write_bytes(SECRET)
    return folder


@pytest.fixture
def output(root: Path) -> BoundFolderOutput:
    FolderOutput(root / "job").create(objects.JOB_FILE, b"{}")
    return BoundFolderOutput(root / "job", [root])


def publish(output: FolderOutput, name: str, data: bytes, *, replace: bool = False) -> bool:
    with output.scratch() as path:
        path.write_bytes(data)
        return output.publish(path, name, replace=replace)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def calls(output: FolderOutput) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Everything that reads, writes or removes."""
    yield "create", lambda: output.create("part-1", b"x")
    yield "replace", lambda: output.replace("part-1", b"x")
    yield "publish", lambda: publish(output, "part-1", b"x")
    yield "publish over", lambda: publish(output, "part-1", b"x", replace=True)
    yield "read", lambda: output.read("part-1")
    yield "read tmp", lambda: output.read(f"{objects.TMP}/kept")
    yield "open", lambda: output.open("part-1").read()
    yield "names", lambda: list(output.names("part-"))
    yield "folders", lambda: list(output.folders(objects.INTERNAL))
    yield "create deeper", lambda: output.create("_decisions/records/20261203/x.jsonl", b"x")
    yield "version", lambda: output.version("part-1")
    yield "remove", lambda: output.remove("part-1")
    yield "sweep", lambda: output.sweep([])


@pytest.mark.parametrize("where", ["folder", objects.INTERNAL, objects.TMP])
def test_a_linked_folder_is_unused(root: Path, output: BoundFolderOutput, outside: Path, where: str) -> None:
    link = root / "job" if where == "folder" else root / "job" / where
    link.rename(root / "moved")
    link.symlink_to(outside if where == "folder" else outside / where)
    before = contents(outside)

    for name, call in calls(output):
        found: Any = None
        with suppress(OutputUnavailableError, FileNotFoundError):
            found = call()
        assert found not in (SECRET, ["part-1"]), name
        assert contents(outside) == before, name


def test_a_linked_file_is_not_read_or_written(root: Path, output: BoundFolderOutput, outside: Path) -> None:
    (root / "job" / "part-1").symlink_to(outside / "part-1")

    for call in (output.read, output.open, output.version):
        with pytest.raises(OutputUnreachableError, match="outside this worker's output roots"):
            call("part-1")
    assert not output.create("part-1", b"x")
    output.replace("part-1", b"x")

    assert (outside / "part-1").read_bytes() == SECRET
    assert output.read("part-1") == b"x"


def test_what_is_no_file_is_not_read(root: Path, output: BoundFolderOutput) -> None:
    os.mkfifo(root / "job" / "part-1")

    with pytest.raises(OutputUnreachableError, match="not a regular file"):
        output.read("part-1")


def test_links_that_stay_below_the_roots_are_followed(root: Path, output: BoundFolderOutput) -> None:
    output.create("part-1", b"x")
    (root / "job").rename(root / "elsewhere")
    (root / "job").symlink_to(root / "elsewhere")

    assert output.read("part-1") == b"x"
    assert output.create("part-2", b"y")
    assert (root / "elsewhere" / "part-2").read_bytes() == b"y"


def test_a_folder_that_turns_into_a_link(root: Path, output: BoundFolderOutput, outside: Path) -> None:
    """Whatever moment the swap hits: nothing outside is read, made, changed or removed."""
    (root / "link").symlink_to(outside)
    before, stop = contents(outside), threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for name in ("real", "link"):  # the folder goes, the link comes, and back
                (root / "job").rename(root / ("real" if name == "real" else "link"))
                (root / ("link" if name == "real" else "real")).rename(root / "job")

    swapper = threading.Thread(target=swap)
    swapper.start()
    done, refused = 0, 0
    try:
        while min(done, refused) < 2000:
            for name, call in calls(output):
                found: Any = None
                try:
                    found = call()
                except (OutputUnavailableError, FileNotFoundError):
                    refused += 1
                else:
                    done += 1
                assert found != SECRET, name
    finally:
        stop.set()
        swapper.join()
    assert contents(outside) == before


def test_no_descriptor_is_left_open(output: BoundFolderOutput) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        for _, call in calls(output):
            with suppress(OutputUnavailableError, FileNotFoundError):
                call()

    assert len(list(Path("/proc/self/fd").iterdir())) <= before


@pytest.mark.parametrize("linked", ["_decisions", "_decisions/records", "_decisions/records/20261203"])
def test_no_folder_is_made_behind_a_link(
    root: Path, output: BoundFolderOutput, outside: Path, linked: str
) -> None:
    link = root / "job" / linked
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(outside)
    before = sorted(outside.rglob("*"))

    with pytest.raises(OutputUnreachableError, match="outside this worker's output roots"):
        output.create("_decisions/records/20261203/x.jsonl", b"x")

    assert sorted(outside.rglob("*")) == before


def test_folders_are_made_step_by_step(output: BoundFolderOutput) -> None:
    assert output.create("_decisions/records/20261203/x.jsonl", b"x")
    assert output.create("_decisions/records/20261203/y.jsonl", b"y")

    assert list(output.folders("_decisions/records")) == ["20261203"]


def test_no_folder_is_made_where_the_output_is_missing(root: Path) -> None:
    with pytest.raises(OutputUnavailableError):
        BoundFolderOutput(root / "unmounted", [root]).create("_decisions/records/20261203/x.jsonl", b"x")

    assert not (root / "unmounted").exists()
