"""What a key may read: what lies below its prefixes, however it is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipfleet.errors import UsageError
from clipfleet_gateway.keys.prefixes import checked_prefix, may_read


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("mine/deep", "mine2", "secret"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "mine" / "link").symlink_to(tmp_path / "secret")
    return tmp_path


@pytest.mark.parametrize(
    "place", ["mine", "mine/", "mine/a.jpg", "mine/deep/../a.jpg", "mine2/../mine/a.jpg"]
)
def test_below_a_folder(tree: Path, place: str) -> None:
    assert may_read(f"{tree}/{place}", [checked_prefix(f"{tree}/mine")])


@pytest.mark.parametrize(
    "place",
    [
        "",
        "secret/a.jpg",
        "mine2/a.jpg",
        "mine/../secret/a.jpg",
        "mine/link/a.jpg",
        "mine/link",
        "mine\0/a.jpg",
    ],
)
def test_not_below_a_folder(tree: Path, place: str) -> None:
    assert not may_read(f"{tree}/{place}", [checked_prefix(f"{tree}/mine")])


@pytest.mark.parametrize("place", ["a.jpg", "./a.jpg", "~/a.jpg", "file:///etc/passwd", "http://x/a.jpg", ""])
def test_what_is_no_place(place: str) -> None:
    assert not may_read(place, ["/", "s3://photos/"])


@pytest.mark.parametrize("prefixes", [[], ["s3://photos/"]])
def test_a_key_without_folders_makes_nobody_look_at_one(
    monkeypatch: pytest.MonkeyPatch, prefixes: list[str]
) -> None:
    def look(*_: object) -> Path:
        raise AssertionError("a folder that the key names may be one that does not answer")

    monkeypatch.setattr(Path, "resolve", look)

    assert not may_read("/photos/a.jpg", prefixes)


@pytest.mark.parametrize("place", ["s3://photos/2026/a.jpg", "S3://photos/2026/a.jpg", "s3://photos/2026/"])
def test_below_a_prefix_in_s3(place: str) -> None:
    assert may_read(place, [checked_prefix("s3://photos/2026")])


@pytest.mark.parametrize(
    "place",
    [
        "s3://photos/2026-private/a.jpg", "s3://photos/202", "s3://photos", "s3://photos2/2026/a.jpg",
        "s3://photos/2026/../a.jpg", "s3://photos/2026/./../a.jpg", "s3://photos/%32026/a.jpg",
        "s3://Photos/2026/a.jpg", "s3:///photos/2026/a.jpg", "s3://photos//2026/a.jpg", "/photos/2026/a.jpg",
    ],
)  # fmt: skip
def test_not_below_a_prefix_in_s3(place: str) -> None:
    assert not may_read(place, [checked_prefix("s3://photos/2026")])


@pytest.mark.parametrize("text", ["photos", "./photos", "http://photos/", "s3://", "file:///photos", ""])
def test_prefixes_are_checked(text: str) -> None:
    with pytest.raises(UsageError):
        checked_prefix(text)
