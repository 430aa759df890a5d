"""Addresses that a key may name, and all notations of those it may not."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from clipfleet.contract.jobs import Lane
from clipfleet_gateway.errors import ApiError
from clipfleet_gateway.keys.key import Key, made_key
from clipfleet_gateway.keys.prefixes import checked_prefix
from clipfleet_gateway.keys.sources import require_readable


def key_with(*prefixes: str) -> Key:
    sources = tuple(checked_prefix(one) for one in prefixes)
    return made_key("nightly", "0" * 64, datetime.now(UTC), lane=Lane.NORMAL, quota=None, sources=sources)


def refusal_of(address: str, key: Key) -> ApiError:
    with pytest.raises(ApiError) as refused:
        require_readable(address, key, "input[3]")
    return refused.value


@pytest.mark.parametrize(
    "address",
    [
        "http://host/a.jpg", "https://host:8443/a%20b.jpg?x=1&y=%2F#z", "HTTPS://Host/a.jpg", "http://host",
        "http://host/a@b.jpg", "http://host/../a.jpg", "http://host/a\\b.jpg", "http://h\u00f6st/\u00e4.jpg",
        # Whether these are public is judged by the workers, which resolve names.
        "http://127.0.0.1/", "http://[::1]:80/", "http://2130706433/", "http://0177.0.0.1/",
        "http://169.254.169.254/latest/meta-data/", "http://localhost:6379/",
    ],
)  # fmt: skip
def test_any_key_may_name_http(address: str) -> None:
    require_readable(address, key_with(), None)


EVERYWHERE = [
    "", " ", "a.jpg", "./a.jpg", "../a.jpg", "~/a.jpg", "~root/a.jpg", "-", "photos/a.jpg", "C:\\a.jpg",
    "file:///data/a.jpg", "FILE:///data/a.jpg", "file:/data/a.jpg", "file://localhost/data/a.jpg",
    "file:data/a.jpg", "file:////data/a.jpg", " file:///data/a.jpg", "\tfile:///data/a.jpg",
    "s3a://photos/a.jpg", "s3n://photos/a.jpg", "s3:/photos/a.jpg", "s3:photos/a.jpg", "s3:///photos/a.jpg",
    " s3://photos/a.jpg", "s3://photos/a.jpg\n", "s3://user:secret@photos/a.jpg", "s3://photos%2fx/a.jpg",
    "gs://photos/a.jpg", "hf://datasets/x/a.jpg", "az://photos/a.jpg", "abfss://c@a/a.jpg", "hdfs://n/a.jpg",
    "ftp://host/a.jpg", "sftp://host/a.jpg", "ws://host/", "unix:///run/docker.sock", "gopher://host/_x",
    "redis://localhost:6379/0", "http+unix://%2Frun%2Fdocker.sock/x", "javascript:alert(1)", "jar:http://x!/",
    "view-source:http://host/", "tar+file:///data/a.tar#offset=0&size=1&name=a.jpg",
    "tar+s3://photos/a.tar#offset=0&size=1&name=a.jpg", "data:image/png;base64,", "file-0123", "//host/a.jpg",
    "\\\\host\\share\\a.jpg", "http:/host/a.jpg", "http:host/a.jpg", "http:\\\\host\\a.jpg", "http:///a.jpg",
    "http://", "https://?x", " http://host/", "\x00http://host/", "http://host/\x00", "http://host/\r\nX: y",
    "http://user:secret@host/a.jpg", "http://user@host/", "http://host\\@evil/", "http://evil%00.host/",
    "http://ho st/", "http://host\t/", "ht\ntp://host/", "\ufeffhttp://host/", "http://host/\ud800",
    "\uff48\uff54\uff54\uff50://host/", "http\uff1a//host/",
    "/\u2025/etc/passwd", "/dev/stdin", "/proc/self/environ",
]  # fmt: skip


@pytest.mark.parametrize("address", EVERYWHERE)
def test_every_other_notation_is_refused(tmp_path: Path, address: str) -> None:
    for key in (key_with(), key_with(str(tmp_path), "s3://mine/2026/")):
        error = refusal_of(address, key)

        assert (int(error.status), error.code, error.param) == (403, "not_allowed", "input[3]")
        error.message.encode()


def test_below_its_prefixes(tmp_path: Path) -> None:
    key = key_with(f"{tmp_path}/mine", "s3://photos/2026")

    for address in ("a.jpg", "", "a b%20\u00e4.jpg", "deep/../a.jpg", "..a/b..jpg"):
        require_readable(f"{tmp_path}/mine/{address}", key, None)
    for address in ("s3://photos/2026/a.jpg", "S3://photos/2026/", "s3://photos/2026/..a/b%20c.jpg"):
        require_readable(address, key, None)


@pytest.mark.parametrize(
    "address",
    [
        "s3://photos", "s3://photos/", "s3://photos/2025/a.jpg", "s3://photos/2026-private/a.jpg",
        "s3://photos/2026/../2025/a.jpg", "s3://photos/2026/./a.jpg", "s3://photos/2026/%2e%2e/2025/a.jpg",
        "s3://photos/2026/%2E./2025/a.jpg", "s3://photos/2026/..%2f2025/a.jpg",
        "s3://photos/2026/..\\2025\\a.jpg", "s3://photos/2026/..%5c2025/a.jpg", "s3://photos/../2026/a.jpg",
        "s3://bucket/../photos/2026/a.jpg", "s3://photos/%32026/a.jpg", "s3://PHOTOS/2026/a.jpg",
        "s3://photos/2026/\x00", "s3://photos//2026/a.jpg", "s3://photos.evil/2026/a.jpg", "s3://", "S3://",
        "s3a://photos/2026/a.jpg", "https:photos/2026/a.jpg",
    ],
)  # fmt: skip
def test_outside_its_prefixes_in_s3(address: str) -> None:
    refusal_of(address, key_with("s3://photos/2026"))


@pytest.mark.parametrize(
    "address",
    [
        "", "/", "/secret/a.jpg", "/mine2/a.jpg", "/mine/../secret/a.jpg", "/mine/link/a.jpg",
        "/mine/./../secret/a.jpg", "/mine//../secret/a.jpg", "/mine/deep/../../secret/a.jpg",
        "/mine\x00/a.jpg", "/mine/one", "/mine/loop/../../secret/a.jpg",
        "/mine/none/../../secret",
    ],
)  # fmt: skip
def test_outside_its_prefixes_in_folders(tmp_path: Path, address: str) -> None:
    for folder in ("mine/deep", "mine2", "secret"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "secret" / "a.jpg").write_bytes(b"secret")
    (tmp_path / "mine" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "mine" / "one").symlink_to("../secret/a.jpg")

    refusal_of(f"{tmp_path}{address}", key_with(f"{tmp_path}/mine"))


def test_links_that_lead_nowhere_are_refused_or_stay_inside(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "loop").symlink_to("loop")
    key = key_with(f"{tmp_path}/mine")

    refusal_of(f"{tmp_path}/mine/loop/../../x", key)
    refusal_of(f"/{'a' * 5000}/a.jpg", key)


def test_paths_that_differ_in_case_or_percent_encoding_are_others(tmp_path: Path) -> None:
    key = key_with(f"{tmp_path}/mine")

    refusal_of(f"{tmp_path}/MINE/a.jpg", key)
    refusal_of(str(tmp_path).replace("/", "%2f") + "/mine/a.jpg", key)
    require_readable(f"{tmp_path}/mine/%2e%2e/a.jpg", key, None)  # a folder of that name: paths are literal


def test_a_folder_of_bytes_that_are_no_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.jpg")

    refusal_of(f"{tmp_path}/{name}", key_with(str(tmp_path)))


def test_a_refusal_says_what_the_key_reads_and_the_way_out() -> None:
    more = "; a key made with `--source` reads a folder or a bucket, too"
    reads = "it reads public http(s) URLs, data: URIs"
    assert refusal_of("/data/a.jpg", key_with()).message == (
        f"This key may not read '/data/a.jpg': {reads} and its own files{more}"
    )
    assert refusal_of("s3://b/a.jpg", key_with("s3://photos/2026", "/data")).message == (
        f"This key may not read 's3://b/a.jpg': {reads}, its own files, and "
        f"what is below s3://photos/2026/, /data/{more}"
    )


@pytest.mark.parametrize("address", ["a.jpg", "photos/a.jpg", "~/a.jpg", "not base64!"])
def test_what_is_no_address_at_all_is_said_so(address: str) -> None:
    assert "it is neither a URL nor an absolute path" in refusal_of(address, key_with("/data")).message


def test_a_long_address_is_shown_in_part() -> None:
    error = refusal_of("gs://" + "x" * 100_000, key_with())

    assert len(error.message) < 1000
