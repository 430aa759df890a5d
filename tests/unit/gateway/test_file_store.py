"""Files: kept whole, found by their owner alone, gone when their time is over."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from clipfleet.errors import OutputDamagedError
from clipfleet.outputs.folder import FolderOutput
from clipfleet_gateway.errors import ApiError
from clipfleet_gateway.files.record import FileRecord, Purpose
from clipfleet_gateway.files.store import FileStore, Order


class Now:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = datetime(2026, 12, 2, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def later(self, **time: float) -> None:
        self.time += timedelta(**time)


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def files(place: FolderOutput, now: Now) -> FileStore:
    return FileStore(place, now=now)


def save(
    files: FileStore, owner: str, data: bytes, *, purpose: Purpose = Purpose.BATCH, seconds: int | None = None
) -> FileRecord:
    received = files.receive()
    try:
        for start in range(0, len(data), 3):
            received.write(data[start : start + 3])
        return files.save(
            owner, received, filename="../a.jsonl", purpose=purpose, expires_after_seconds=seconds
        )
    finally:
        received.close()


def test_a_file_is_kept_whole(files: FileStore, tmp_path: Path) -> None:
    record = save(files, "mine", b"hello world")

    assert files.find("mine", record.id) == files.require("mine", record.id) == record
    assert (record.bytes, record.filename) == (11, "../a.jsonl")
    assert record.sha256 == hashlib.sha256(b"hello world").hexdigest()
    assert files.read("mine", record.id) == b"hello world"
    with files.content("mine", record.id) as content:
        assert content.read() == b"hello world"
    below = {path.parent for path in tmp_path.rglob("*") if path.is_file()}
    assert below == {tmp_path / "gateway" / "files" / "mine"}, "no scratch file is left"


def test_what_was_received_and_not_saved_is_gone(files: FileStore, tmp_path: Path) -> None:
    received = files.receive()
    received.write(b"half")
    received.close()
    received.write(b"a late thread")
    received.close()

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_files_of_others_are_like_none(files: FileStore) -> None:
    record = save(files, "mine", b"x")

    for owner, file_id in [
        ("other", record.id),
        ("mine", f"file-{'0' * 32}"),
        ("other", f"../mine/{record.id}"),
    ]:
        assert files.find(owner, file_id) is None
        assert files.read(owner, file_id) is None
        assert not files.delete(owner, file_id)
        with pytest.raises(FileNotFoundError):
            files.content(owner, file_id)
        with pytest.raises(ApiError) as error:
            files.require(owner, file_id, "input[2]")
        assert (error.value.status, error.value.param) == (404, "input[2]")


def test_deleted(files: FileStore, tmp_path: Path) -> None:
    record = save(files, "mine", b"x")

    assert files.delete("mine", record.id)
    assert not files.delete("mine", record.id)
    assert files.find("mine", record.id) is None
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_expired(files: FileStore, now: Now, tmp_path: Path) -> None:
    kept, expires = save(files, "mine", b"x"), save(files, "mine", b"y", seconds=3600)

    now.later(seconds=3599)
    files.remove_expired()
    assert files.find("mine", expires.id) == expires

    now.later(seconds=1)
    assert files.find("mine", expires.id) is None, "even before it is removed"
    files.remove_expired()
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {f"{kept.id}.json", f"{kept.id}.bytes"}


def test_what_is_no_entry_keeps_none_from_expiring(
    files: FileStore, place: FolderOutput, now: Now, tmp_path: Path
) -> None:
    strange = ("000000000000", "00000000000x.mine.file-1", "1.2.3", ".nfs0001", "000000000001.a.b.c", "x")
    for name in strange:
        place.create(f"expiring/{name}", b"-")
    save(files, "mine", b"y", seconds=3600)

    now.later(hours=2)
    files.remove_expired()

    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {*strange}


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_by_age(files: FileStore, now: Now, order: Order) -> None:
    saved = []
    for number in range(5):
        saved.append(save(files, "mine", b"x", purpose=Purpose.USER_DATA if number % 2 else Purpose.BATCH))
        now.later(seconds=1)
    save(files, "other", b"x")
    wanted = saved if order == "asc" else saved[::-1]

    found, after, has_more = [], None, True
    while has_more:
        page, has_more = files.listed("mine", after=after, limit=2, order=order, purpose=None)
        found += page
        after = page[-1].id
    assert found == wanted

    images, has_more = files.listed("mine", after=None, limit=2, order=order, purpose="user_data")
    assert ([*images], has_more) == ([one for one in wanted if one.purpose == "user_data"], False)
    assert files.listed("mine", after=None, limit=2, order=order, purpose="fine-tune") == ([], False)


@pytest.mark.parametrize("purpose", [None, "batch", "vision", "fine-tune"])
def test_a_page_reads_its_own_records_alone(
    files: FileStore, place: FolderOutput, purpose: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(30):
        save(files, "mine", b"x", purpose=Purpose.USER_DATA)
    kept = save(files, "mine", b"x")
    for _ in range(30):
        save(files, "mine", b"x", purpose=Purpose.USER_DATA)
    reads: list[str] = []

    def read(name: str) -> bytes | None:
        reads.append(name)
        return FolderOutput.read(place, name)

    monkeypatch.setattr(place, "read", read)
    page, has_more = files.listed("mine", after=None, limit=1, order="asc", purpose=purpose)

    expected = {None: (1, True), "batch": (1, False)}.get(purpose, (0, False))
    assert (len(page), has_more) == expected
    assert purpose != "batch" or [*page] == [kept]
    assert len(reads) <= 8


def test_a_killed_upload_is_cleared_away_a_day_later(files: FileStore, now: Now, tmp_path: Path) -> None:
    kept = save(files, "mine", b"x")
    received = files.receive()
    record = files.described(received, filename="a", purpose=Purpose.BATCH)
    files.put_content("mine", record.id, received)
    received.close()

    assert files.find("mine", record.id) is None
    files.remove_strays("mine", set())
    assert files.read("mine", record.id) == b"", "it may be under way"

    now.later(days=2)
    files.remove_strays("mine", set())
    assert {path.stem for path in tmp_path.rglob("*") if path.is_file()} == {kept.id}


def test_a_damaged_record_is_said(files: FileStore, place: FolderOutput) -> None:
    record = save(files, "mine", b"x")
    place.replace(f"files/mine/{record.id}.json", b"{")

    with pytest.raises(OutputDamagedError, match=record.id):
        files.find("mine", record.id)
