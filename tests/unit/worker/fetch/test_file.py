"""Files below the roots are read, everything else on the machine is refused; and URIs find their fetcher."""

from __future__ import annotations

import errno
import os
import socket
import threading
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from pytest import MonkeyPatch

from clipfleet.contract.jobs import ErrorCode
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.fetch.file import FileFetcher, path_of
from tests.support.doubles import InThread

LIMIT = 1000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "a.jpg").write_bytes(b"a")
    (root / "sub" / "b.jpg").write_bytes(b"b")
    return root


@pytest.fixture
def outside(tmp_path: Path, root: Path) -> Path:
    """A file beside the root, in a folder whose name begins with the root's name."""
    folder = tmp_path / "root2"
    folder.mkdir()
    (folder / "secret.jpg").write_bytes(b"secret")
    return folder / "secret.jpg"


@pytest.fixture
def fetcher(root: Path) -> FileFetcher:
    return FileFetcher((root,), LIMIT)


def failure(fetcher: FileFetcher, uri: str) -> ItemFailure:
    with pytest.raises(ItemFailure) as raised:
        fetcher.read(uri)
    return raised.value


def code(fetcher: FileFetcher, uri: str) -> ErrorCode:
    return failure(fetcher, uri).error.code


class TestReading:
    def test_absolute_path(self, fetcher: FileFetcher, root: Path, outside: Path) -> None:
        assert fetcher.read(f"{root}/sub/b.jpg") == b"b"
        for roots in ((root,), (outside.parent, root), (Path("/"),)):
            assert FileFetcher(roots, LIMIT).read(f"{root}/a.jpg") == b"a"

    @pytest.mark.parametrize("form", ["file://{}", "file://localhost{}", "FILE://LocalHost{}", "file:{}"])
    def test_file_url(self, fetcher: FileFetcher, root: Path, form: str) -> None:
        assert fetcher.read(form.format(f"{root}/a.jpg")) == b"a"

    @pytest.mark.parametrize(
        "name", ["ä ö.jpg", "100%.jpg", "a?b#c.jpg", "%41.jpg", "a\nb.jpg", "\udcff.jpg"]
    )
    def test_any_name_as_a_path_and_as_a_url(self, fetcher: FileFetcher, root: Path, name: str) -> None:
        path = root / name
        path.write_bytes(name.encode(errors="surrogateescape"))
        assert fetcher.read(str(path)) == fetcher.read(path.as_uri()) == path.read_bytes()

    def test_path_is_not_percent_decoded(self, fetcher: FileFetcher, root: Path) -> None:
        assert code(fetcher, f"{root}/%61.jpg") is ErrorCode.NOT_FOUND
        assert fetcher.read(f"file://{root}/%61.jpg") == b"a"

    def test_size_up_to_the_limit(self, fetcher: FileFetcher, root: Path) -> None:
        path = root / "x.jpg"
        for size in (0, LIMIT):
            path.write_bytes(bytes(size))
            assert fetcher.read(str(path)) == bytes(size)
        path.write_bytes(bytes(LIMIT + 1))
        assert code(fetcher, str(path)) is ErrorCode.TOO_MANY_BYTES

    def test_file_whose_size_is_not_known_beforehand(self) -> None:
        """Files in /proc say 0 bytes, like a file that grows between the look at its size and the read."""
        content = Path("/proc/version").read_bytes()
        assert Path("/proc/version").stat().st_size == 0
        assert FileFetcher((Path("/proc"),), len(content)).read("/proc/version") == content
        assert code(FileFetcher((Path("/proc"),), 10), "/proc/version") is ErrorCode.TOO_MANY_BYTES

    def test_file_that_grew_or_shrank(
        self, fetcher: FileFetcher, root: Path, monkeypatch: MonkeyPatch
    ) -> None:
        path, real_fstat = root / "a.jpg", os.fstat
        for content in (b"grown" * 10, b"s"):

            def fstat_then_change(descriptor: int, content: bytes = content) -> os.stat_result:
                status = real_fstat(descriptor)
                path.write_bytes(content)
                return status

            with monkeypatch.context() as patch:
                patch.setattr(os, "fstat", fstat_then_change)
                assert fetcher.read(str(path)) == content

    def test_root_behind_a_link_and_with_a_slash_at_its_end(self, root: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(root)
        fetcher = FileFetcher((tmp_path / "link" / "",), LIMIT)
        assert fetcher.read(f"{tmp_path}/link/a.jpg") == b"a"
        assert fetcher.read(f"{root}/a.jpg") == b"a"

    def test_many_threads(self, fetcher: FileFetcher, root: Path) -> None:
        names = [f"{number}.jpg" for number in range(50)]
        for name in names:
            (root / name).write_bytes(name.encode())

        def read_all() -> list[str]:
            return [fetcher.read(f"{root}/{name}").decode() for name in names * 4]

        for call in [InThread(read_all) for _ in range(8)]:
            assert call.result() == names * 4

    def test_no_descriptor_is_left_open(self, fetcher: FileFetcher, root: Path, outside: Path) -> None:
        before = sorted(Path("/proc/self/fd").iterdir())
        fetcher.read(f"{root}/a.jpg")
        for uri in (f"{root}/none.jpg", f"{root}/sub", str(outside), "relative.jpg"):
            failure(fetcher, uri)
        assert sorted(Path("/proc/self/fd").iterdir()) == before


class TestRefusals:
    @pytest.mark.parametrize(
        "uri",
        [
            "{outside}",
            "file://{outside}",
            "{root}/../root2/secret.jpg",
            "{root}/sub/../../root2/secret.jpg",
            "file://{root}/%2e%2e/root2/secret.jpg",
            "file://{root}/..%2froot2%2fsecret.jpg",
            "/etc/passwd",
            "//etc/passwd",
            "/proc/self/environ",
            "/dev/zero",
            "/",
            "{root}",
            "{root}/..",
            # Whether it exists is not said.
            "{outside}/../none.jpg",
            "{outside}/below-a-file.jpg",
            "/no/such/folder/x.jpg",
            "{root}/../none.jpg",
            "{root}/dangling",
            "/" + "n" * 300,
        ],
    )
    def test_outside_the_roots(self, fetcher: FileFetcher, root: Path, outside: Path, uri: str) -> None:
        (root / "dangling").symlink_to(outside.parent / "none.jpg")
        refusal = failure(fetcher, uri.format(root=root, outside=outside))
        assert (
            str(refusal) == "path_refused: outside the folders of CLIPFLEET_FILE_ROOTS (with `up`: of --root)"
        )

    def test_dots_that_stay_inside(self, fetcher: FileFetcher, root: Path) -> None:
        assert fetcher.read(f"{root}/sub/../a.jpg") == b"a"
        assert fetcher.read(f"{root}/../{root.name}/./sub//b.jpg") == b"b"

    def test_links_that_lead_outside(self, fetcher: FileFetcher, root: Path, outside: Path) -> None:
        (root / "file-link").symlink_to(outside)
        (root / "folder-link").symlink_to(outside.parent)
        (root / "relative-link").symlink_to("../root2/secret.jpg")
        (root / "chain").symlink_to("file-link")
        for name in ("file-link", "folder-link/secret.jpg", "relative-link", "chain"):
            assert code(fetcher, f"{root}/{name}") is ErrorCode.PATH_REFUSED, name

    def test_links_that_stay_inside(self, fetcher: FileFetcher, root: Path) -> None:
        (root / "link.jpg").symlink_to("sub/b.jpg")
        (root / "folder").symlink_to("sub")
        assert fetcher.read(f"{root}/link.jpg") == b"b"
        assert fetcher.read(f"{root}/folder/b.jpg") == b"b"

    @pytest.mark.parametrize("uri", ["/a/a.jpg", "file:///a/a.jpg", "/", "relative.jpg"])
    def test_no_roots_refuse_everything_and_name_the_setting(self, uri: str) -> None:
        error = failure(FileFetcher((), LIMIT), uri).error
        assert error.code is ErrorCode.PATH_REFUSED
        assert "CLIPFLEET_FILE_ROOTS" in error.detail

    @pytest.mark.parametrize("kind", ["fifo", "socket", "device"])
    def test_what_is_no_file_is_not_opened(self, fetcher: FileFetcher, root: Path, kind: str) -> None:
        path = root / "x.jpg"
        if kind == "fifo":
            os.mkfifo(path)  # opening it would block until somebody writes
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
        else:
            path, fetcher = Path("/dev/null"), FileFetcher((Path("/dev"),), LIMIT)
        assert str(failure(fetcher, str(path))) == "path_refused: a pipe, socket or device, not a file"


class TestFailures:
    def test_not_found(self, fetcher: FileFetcher, root: Path) -> None:
        (root / "circle").symlink_to("circle")
        (root / "dangling").symlink_to("none.jpg")
        for name in ("none.jpg", "none/x.jpg", "a.jpg/x.jpg", "circle", "dangling", "sub"):
            assert code(fetcher, f"{root}/{name}") is ErrorCode.NOT_FOUND, name

    @pytest.mark.parametrize(
        "uri",
        [
            "",
            "relative.jpg",
            "./relative.jpg",
            "~/x.jpg",
            "file:relative.jpg",
            "file://",
            "file://otherhost/x.jpg",
            "file://127.0.0.1/x.jpg",
            "file://user@localhost/x.jpg",
            "file:///x.jpg?version=1",
            "file:///x.jpg#part",
            "http://localhost/x.jpg",
            "/nul\0.jpg",
            "file:///nul%00.jpg",
            "/\ud800.jpg",
            "file:///\ud800.jpg",
        ],
    )
    def test_bad_uri(self, fetcher: FileFetcher, uri: str) -> None:
        assert code(fetcher, uri) is ErrorCode.BAD_URI

    def test_name_that_is_too_long(self, fetcher: FileFetcher, root: Path) -> None:
        assert code(fetcher, f"{root}/{'n' * 300}") is ErrorCode.BAD_URI

    @pytest.mark.parametrize(
        ("number", "expected"),
        [
            (errno.EACCES, "access_denied"),
            (errno.EPERM, "access_denied"),
            (errno.ESTALE, "not_found"),  # removed on a network share
            (errno.EIO, "incomplete_body"),
            (errno.EMFILE, "incomplete_body"),
        ],
    )
    @pytest.mark.parametrize("call", ["open", "read"])
    def test_errors_of_the_system(
        self, root: Path, monkeypatch: MonkeyPatch, call: str, number: int, expected: str
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, call, MagicMock(side_effect=OSError(number, os.strerror(number))))
            error = failure(FileFetcher((root,), LIMIT), f"{root}/a.jpg").error
        assert (error.code, error.detail) == (expected, os.strerror(number))


class TestRaces:
    def test_link_swapped_after_the_file_was_pinned(
        self, fetcher: FileFetcher, root: Path, outside: Path, monkeypatch: MonkeyPatch
    ) -> None:
        link = root / "link.jpg"
        link.symlink_to("a.jpg")
        real_readlink = os.readlink

        def swap_then_readlink(path: str) -> str:
            swap(link, outside)
            return real_readlink(path)

        monkeypatch.setattr(os, "readlink", swap_then_readlink)
        assert fetcher.read(str(link)) == b"a"  # what was checked is what is read

    @pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOENT])
    def test_link_that_changes_while_it_is_looked_up(
        self, fetcher: FileFetcher, root: Path, monkeypatch: MonkeyPatch, number: int
    ) -> None:
        (root / "link").symlink_to("inner")
        monkeypatch.setattr(os, "readlink", MagicMock(side_effect=OSError(number, os.strerror(number))))
        assert code(fetcher, f"{root}/link/none.jpg") is ErrorCode.PATH_REFUSED

    def test_folder_that_turns_into_a_link(self, fetcher: FileFetcher, root: Path, outside: Path) -> None:
        """Again and again, while it is read."""
        (root / "inner").mkdir()
        (root / "inner" / "secret.jpg").write_bytes(b"harmless")
        link = root / "link"
        link.symlink_to("inner")
        done = threading.Event()

        def swap_on() -> None:
            while not done.is_set():
                swap(link, outside.parent)
                swap(link, root / "inner")

        swapper = threading.Thread(target=swap_on)
        assert fetcher.read(f"{link}/secret.jpg") == b"harmless"
        swapper.start()
        answers: set[bytes | ErrorCode] = set()
        try:
            for _ in range(3000):
                try:
                    answers.add(fetcher.read(f"{link}/secret.jpg"))
                except ItemFailure as failure:
                    answers.add(failure.error.code)
        finally:
            done.set()
            swapper.join()
        assert answers <= {b"harmless", ErrorCode.PATH_REFUSED, ErrorCode.NOT_FOUND}


def swap(link: Path, target: Path) -> None:
    """Point a link elsewhere, without a moment in which it is missing."""
    other = link.with_name("swapped-in")
    other.symlink_to(target)
    other.replace(link)


def test_path_of_looks_nothing_up() -> None:
    assert path_of("file:///no/such%20file") == "/no/such file"
    assert path_of("/../etc") == "/../etc"
