"""Where a bucket is by a request of boto3's, and signatures of our own, which must be botocore's."""

from __future__ import annotations

import calendar
from datetime import datetime
from typing import Any

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials

from clipfleet_worker.fetch.s3 import direct as s3_direct
from clipfleet_worker.fetch.s3.boto import S3Place, place_of
from clipfleet_worker.fetch.s3.direct import signed_headers

KEYS = (
    "x.jpg",
    "a b+c/ä ü~(1)'!*.jpg",
    "/x",
    "a//b",
    "../x",
    "./x",
    "100%25?x=1#y",
    "日本/\U0001f600",
    "a\\b&c=d;e,f",
)
KEYS_ID, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
PLAIN = {
    "Authorization": b"AWS4-HMAC-SHA256 Credential=AK/20261126/eu-west-3/s3/aws4_request, SignedHeaders=",
    "X-Amz-Date": b"20261126T000000Z",
    "X-Amz-Content-SHA256": b"e3b0",
    "User-Agent": "Boto3/1",
}  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "root", ["https://b.s3.eu-west-3.amazonaws.com/", "http://127.0.0.1:8333/b/", "http://[::1]:80/b/"]
)
@pytest.mark.parametrize(
    ("token", "byte_range", "checks"), [(None, "", False), ("to/ken==", "bytes=1-9", True)]
)
def test_the_signature_is_that_of_botocore(
    key: str, root: str, token: str | None, byte_range: str, checks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = ReadOnlyCredentials(KEYS_ID, SECRET, token)
    host = root.split("/")[2].removesuffix(":80")
    place = S3Place(root, host, "eu-west-3", "clipfleet", checks)
    url = place.url_of(key)
    now = calendar.timegm((2026, 11, 26, 1, 2, 3))

    ours = signed_headers(place, url, byte_range, credentials, now)

    extra = {name: ours[name] for name in ("range", "x-amz-checksum-mode") if name in ours}
    theirs = AWSRequest("GET", url, headers=extra)
    theirs.context["payload_signing_enabled"] = True
    _at_this_moment(monkeypatch, ours["x-amz-date"])
    S3SigV4Auth(credentials, "s3", "eu-west-3").add_auth(theirs)
    assert ours["authorization"] == theirs.headers["Authorization"]
    assert ours.get("x-amz-security-token") == theirs.headers.get("X-Amz-Security-Token")


def _at_this_moment(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """botocore signs with the time of its own clock."""
    then = datetime.strptime(moment, "%Y%m%dT%H%M%SZ")
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda *_, **__: then)


@pytest.mark.parametrize("key", KEYS)
def test_a_place_is_the_url_before_the_key(key: str) -> None:
    url = S3Place("https://s.example:9000/p/b/", "", "", "", False).url_of(key)

    place = place_of(url, PLAIN, key)

    assert place == S3Place("https://s.example:9000/p/b/", "s.example:9000", "eu-west-3", "Boto3/1", False)
    assert place.url_of(key) == url


def test_a_default_port_is_not_signed() -> None:
    place = place_of("https://s.example:443/b/k", {**PLAIN, "x-amz-checksum-mode": "ENABLED"}, "k")

    assert place is not None
    assert place.host == "s.example"
    assert place.asks_for_checksums


@pytest.mark.parametrize(
    ("url", "changes"),
    [
        ("https://s/b/other", {}),
        ("https://s/b/k?versionId=1", {}),
        ("https://me:secret@s/b/k", {}),
        ("ftp://s/b/k", {}),
        ("https://s/b/k", {"Authorization": b""}),
        ("https://s/b/k", {"Authorization": b"AWS AK:signature"}),
        (
            "https://s/b/k",
            {"Authorization": b"AWS4-ECDSA-P256-SHA256 Credential=AK/20261126/s3/aws4_request, "},
        ),
        ("https://s/b/k", {"Authorization": PLAIN["Authorization"].replace(b"/s3/", b"/s3express/")}),  # type: ignore[union-attr]
        ("https://s/b/k", {"X-Amz-S3session-Token": b"t"}),
    ],
)
def test_what_is_not_asked_for_in_the_plain_way_has_no_place(url: str, changes: dict[str, Any]) -> None:
    assert place_of("https://s/b/k", PLAIN, "k") is not None

    assert place_of(url, {**PLAIN, **changes}, "k") is None


def test_a_day_has_one_signing_key() -> None:
    day = s3_direct._signing_key("secret", "20261126", "r")
    assert day is s3_direct._signing_key("secret", "20261126", "r")
    assert day != s3_direct._signing_key("secret", "20261127", "r")
