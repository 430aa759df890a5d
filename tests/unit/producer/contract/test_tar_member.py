"""Names of images inside archives, and the bytes behind them on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipfleet.contract.jobs import ErrorCode
from clipfleet.contract.tar_member import TarMember, tar_member
from clipfleet.sources.uris import local_uri
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.fetch import scheme_of
from clipfleet_worker.fetch.file import FileFetcher

TEXT = st.text(st.characters(codec="utf-8"), min_size=1)


@given(key=TEXT, name=TEXT, offset=st.integers(0, 2**40), size=st.integers(0, 2**40))
def test_what_is_written_is_read(key: str, name: str, offset: int, size: int) -> None:
    member = TarMember(f"s3://bucket/{key}", name, offset, size)

    assert tar_member(member.uri()) == member
    assert scheme_of(member.uri()) == "tar+s3"


def test_it_reads_well() -> None:
    member = TarMember("/data/a b/00000.tar", "x/000000001.jpg", 1536, 48123)

    assert member.uri() == "tar+file:///data/a%20b/00000.tar#offset=1536&size=48123&name=x/000000001.jpg"


@pytest.mark.parametrize(
    "uri",
    [
        "tar+file:///x.tar", "tar+http://h/x.tar#offset=0&size=1&name=a", "tar+file:///x#offset=-1&size=1&name=a",
        "file:///x.tar#offset=0&size=1&name=a", "tar+file:///x#size=1&offset=0&name=a",
    ],
)  # fmt: skip
def test_what_is_none(uri: str) -> None:
    with pytest.raises(ValueError, match="offset=BYTES"):
        tar_member(uri)


class TestOnThisMachine:
    @pytest.fixture
    def archive(self, tmp_path: Path) -> Path:
        path = tmp_path / os.fsdecode(b"caf\xe9 #1%.tar")
        path.write_bytes(bytes(range(256)) * 8)
        return path

    def read(self, root: Path, archive: Path | str, offset: int, size: int) -> bytes | ErrorCode:
        fetcher = FileFetcher([root], 1000)
        try:
            return fetcher.read_member(TarMember(local_uri(str(archive)), "a.jpg", offset, size).uri())
        except ItemFailure as failure:
            return failure.error.code

    def test_exactly_these_bytes_are_read(self, tmp_path: Path, archive: Path) -> None:
        assert self.read(tmp_path, archive, 300, 4) == bytes([44, 45, 46, 47])
        assert self.read(tmp_path, archive, 0, 0) == b""
        assert self.read(tmp_path, archive, 2047, 1) == b"\xff"

    @pytest.mark.parametrize(
        ("offset", "size", "code"),
        [
            (2047, 2, ErrorCode.INCOMPLETE_BODY),
            (5000, 1, ErrorCode.INCOMPLETE_BODY),
            (0, 1001, ErrorCode.TOO_MANY_BYTES),
            (10**17, 1, ErrorCode.INCOMPLETE_BODY),
            (10**18 - 1, 1, ErrorCode.INCOMPLETE_BODY),
        ],
    )
    def test_what_is_not_there(
        self, tmp_path: Path, archive: Path, offset: int, size: int, code: str
    ) -> None:
        assert self.read(tmp_path, archive, offset, size) is code

    def test_the_roots_hold_for_archives_too(self, tmp_path: Path, archive: Path) -> None:
        (tmp_path / "in").mkdir()
        (tmp_path / "in/link.tar").symlink_to(archive)

        assert self.read(tmp_path / "in", archive, 0, 1) is ErrorCode.PATH_REFUSED
        assert self.read(tmp_path / "in", tmp_path / "in/link.tar", 0, 1) is ErrorCode.PATH_REFUSED
        assert self.read(tmp_path, tmp_path / "gone.tar", 0, 1) is ErrorCode.NOT_FOUND
        assert self.read(tmp_path, tmp_path / "in", 0, 1) is ErrorCode.NOT_FOUND
