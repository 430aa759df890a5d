"""A folder as an output: created once, whole or not at all, and errors that say whether waiting helps."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from clipfleet.errors import JobConflictError, OutputUnavailableError, OutputUnreachableError
from clipfleet.outputs import folder, objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet.outputs.scratch import output_errors

Break = Callable[[object, str, int], None]


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Break:
    """Makes a function of a module or class fail with an error number."""

    def refuse(owner: object, name: str, number: int) -> None:
        def refusing(*args: object, **options: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(owner, name, refusing)

    return refuse


def tmp_names(output: FolderOutput) -> list[str]:
    return os.listdir(Path(output.uri, objects.TMP))  # noqa: PTH208 - names are what is asked for


class TestObjects:
    def test_what_is_open_stays_readable_when_it_is_replaced(self, output: FolderOutput) -> None:
        output.create("a.json", b"one")

        with output.open("a.json") as file:
            output.replace("a.json", b"two")
            assert file.read() == b"one"

    def test_sweeping_where_nothing_may_be_removed(self, output: FolderOutput) -> None:
        Path(output.uri, objects.TMP, "folder").mkdir(parents=True)
        output.sweep([])

        assert tmp_names(output) == ["folder"]

    @pytest.mark.parametrize("replace", [False, True])
    def test_a_late_writer_whose_scratch_was_swept_waits(self, output: FolderOutput, replace: bool) -> None:
        with output.scratch() as path:
            path.write_bytes(b"late")
            output.sweep([])

            with pytest.raises(OutputUnavailableError, match="removed when its job ended") as caught:
                output.publish(path, "a.json", replace=replace)

        assert not isinstance(caught.value, OutputUnreachableError)
        assert output.read("a.json") is None

    def test_a_writer_whose_output_was_removed_is_told_so(self, output: FolderOutput) -> None:
        with output.scratch() as path:
            path.write_bytes(b"late")
            shutil.rmtree(output.uri)

            with pytest.raises(OutputUnreachableError):
                output.publish(path, "a.json")

    def test_clearing_stops_where_it_is_no_longer_wanted(self, output: FolderOutput) -> None:
        for chunk in range(3):
            output.create(objects.LAYOUT.part(chunk), b"x")
        left = [5]  # three objects that are not there, and two parts

        def confirm() -> None:
            left[0] -= 1
            if left[0] < 0:
                raise JobConflictError("another submit")

        with pytest.raises(JobConflictError, match="another submit"):
            output.clear(confirm=confirm)
        assert list(output.names(objects.LAYOUT.part_prefix)) == [objects.LAYOUT.part(2)]

    def test_a_folder_is_no_object(self, output: FolderOutput) -> None:
        Path(output.uri, "part-folder").mkdir(parents=True)

        assert list(output.names("")) == []

    @pytest.mark.parametrize("name", ["~nobody-of-this-name/out", "link/out"])
    def test_the_uri_is_absolute_and_keeps_links(self, folder: Path, name: str) -> None:
        (folder / "link").symlink_to(folder)

        assert FolderOutput(Path(name)).uri == f"{folder}/{name}"


class TestPublishing:
    def test_a_scratch_file_is_gone_afterwards_published_or_not(self, output: FolderOutput) -> None:
        for data, replace, is_made in ((b"one", False, True), (b"two", True, True), (b"three", False, False)):
            with output.scratch() as path:
                path.write_bytes(data)
                assert output.publish(path, "a", replace=replace) is is_made
        with output.scratch():
            pass

        assert output.read("a") == b"two"
        assert tmp_names(output) == []

    def test_nothing_is_visible_after_an_error(self, output: FolderOutput) -> None:
        with pytest.raises(RuntimeError), output.scratch() as path:
            path.write_bytes(b"half")
            raise RuntimeError

        assert list(output.names("")) == []
        assert tmp_names(output) == []

    @pytest.mark.parametrize("write", [FolderOutput.create, FolderOutput.replace])
    def test_nothing_is_visible_of_a_full_disk(self, output: FolderOutput, refuse: Break, write: Any) -> None:
        refuse(folder.os, "fsync", errno.ENOSPC)

        with pytest.raises(OutputUnavailableError):
            write(output, "a", b"one")

        assert output.read("a") is None
        assert tmp_names(output) == []

    def test_the_name_comes_between_syncs(
        self, output: FolderOutput, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[tuple[bool, bool]] = []
        fsync = os.fsync

        def recording(descriptor: int) -> None:
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115 - a name in /proc
            seen.append((path.is_dir(), Path(output.uri, "a").exists()))
            fsync(descriptor)

        monkeypatch.setattr(folder.os, "fsync", recording)
        output.create("a", b"one")

        assert seen == [(False, False), (True, True)]

    def test_a_leftover_that_stays_is_no_failure(self, output: FolderOutput, refuse: Break) -> None:
        refuse(Path, "unlink", errno.EIO)

        assert output.create("a", b"one")
        assert output.read("a") == b"one"

    def test_a_lost_answer_of_a_link(self, output: FolderOutput, monkeypatch: pytest.MonkeyPatch) -> None:
        # Given NFS: the server makes the link, the answer is lost, its repetition finds the name taken
        link = Path.hardlink_to

        def repeated(target: Path, source: Path) -> None:
            link(target, source)
            link(target, source)

        monkeypatch.setattr(Path, "hardlink_to", repeated)

        assert output.create("a", b"one")
        assert not output.create("a", b"two")
        assert output.read("a") == b"one"

    @pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
    def test_a_file_system_without_hard_links(self, output: FolderOutput, refuse: Break, number: int) -> None:
        refuse(Path, "hardlink_to", number)

        assert output.create("a", b"one")
        assert not output.create("a", b"two")
        assert output.read("a") == b"one"
        assert tmp_names(output) == []

    def test_folders_that_never_sync(self, output: FolderOutput, monkeypatch: pytest.MonkeyPatch) -> None:
        fsync = os.fsync

        def picky(descriptor: int) -> None:
            if os.path.isdir(descriptor):  # noqa: PTH112 - a descriptor, not a path
                raise OSError(errno.EINVAL, "Invalid argument")
            fsync(descriptor)

        monkeypatch.setattr(folder.os, "fsync", picky)

        assert output.create("a", b"one")


class TestConditionalReplacement:
    def replace_if(self, output: FolderOutput, version: str | None) -> bool:
        with output.scratch() as path:
            path.write_bytes(b"ours")
            return output.replace_if(path, "a", version or "")

    def test_every_write_makes_another_version(self, output: FolderOutput) -> None:
        versions = {output.version("a")}
        for _ in range(5):
            output.replace("a", b"the same")
            versions.add(output.version("a"))

        assert len(versions) == 6

    @pytest.mark.parametrize("after", [b"theirs", None])
    def test_who_waits_in_front_of_a_file_that_is_replaced_or_removed_changes_nothing(
        self, output: FolderOutput, monkeypatch: pytest.MonkeyPatch, after: bytes | None
    ) -> None:
        output.create("a", b"one")
        seen = output.version("a")
        change = (lambda _: output.replace("a", after)) if after else (lambda _: output.remove("a"))
        monkeypatch.setattr(folder, "_lock", change)  # called when the file is open

        assert not self.replace_if(output, seen)
        assert output.read("a") == after

    def test_while_another_writer_replaces_it_nobody_else_does(self, output: FolderOutput) -> None:
        output.create("a", b"one")
        with Path(output.uri, "a").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)

            with pytest.raises(OutputUnavailableError, match="another writer is replacing it") as caught:
                self.replace_if(output, output.version("a"))
        assert not isinstance(caught.value, OutputUnreachableError)

    @pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
    def test_a_file_system_without_locks(self, output: FolderOutput, refuse: Break, number: int) -> None:
        refuse(folder.fcntl, "flock", number)
        output.create("a", b"one")
        seen = output.version("a")

        assert self.replace_if(output, seen)
        assert not self.replace_if(output, seen)


def test_a_reader_never_sees_half_an_object(output: FolderOutput) -> None:
    contents = [f"{number:02d}".encode() * 100_000 for number in range(4)]
    output.replace("a", contents[0])
    stop = threading.Event()

    def write(number: int) -> None:
        while not stop.is_set():
            output.replace("a", contents[number])

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write, number) for number in range(4)]
        try:
            seen = {output.read("a") for _ in range(200)}
        finally:
            stop.set()
        for writer in writers:
            writer.result()
    assert seen <= set(contents)
    assert tmp_names(output) == []


class TestErrors:
    WAITING_HELPS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE)
    IN_VAIN = (errno.EACCES, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)

    @pytest.mark.parametrize("number", [*WAITING_HELPS, *IN_VAIN])
    def test_the_number_says_whether_waiting_helps(self, number: int) -> None:
        with pytest.raises(OutputUnavailableError) as caught, output_errors(Path("/x/y")):
            raise OSError(number, os.strerror(number))

        assert isinstance(caught.value, OutputUnreachableError) is (number in self.IN_VAIN)
        assert str(caught.value) == f"/x/y: {os.strerror(number)}"

    def test_a_file_where_the_folder_should_be(self, output: FolderOutput) -> None:
        Path(output.uri).write_text("x")

        calls = [("create", b""), ("replace", b""), ("read",), ("open",), ("remove",)]
        for name, *data in calls:
            with pytest.raises(OutputUnreachableError, match="out"):
                getattr(output, name)("a", *data)
        with pytest.raises(OutputUnreachableError, match="out"):
            list(output.names(""))

    def test_a_file_where_the_temporary_folder_should_be(self, output: FolderOutput) -> None:
        Path(output.uri, objects.INTERNAL).mkdir(parents=True)
        Path(output.uri, objects.TMP).write_text("x")

        with pytest.raises(OutputUnreachableError, match="File exists"):
            output.create("a", b"")

    def test_a_name_that_is_too_long(self, output: FolderOutput) -> None:
        for call in (lambda: output.create("x" * 300, b""), lambda: output.open("x" * 300)):
            with pytest.raises(OutputUnreachableError, match="too long"):
                call()
        assert tmp_names(output) == []

    def test_no_right_to_look(self, output: FolderOutput, refuse: Break) -> None:
        # The tests may run as root, for whom every folder is open.
        output.create("a", b"")
        refuse(folder.pa, "OSFile", errno.EACCES)
        refuse(folder.os, "scandir", errno.EACCES)

        for call in (lambda: output.open("a"), lambda: list(output.names(""))):
            with pytest.raises(OutputUnreachableError, match="Permission denied"):
                call()
