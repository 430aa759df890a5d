"""Where a bucket is by a request of boto3's, and signatures of our own, which must be botocore's."""

from __future__ import annotations

import calendar
from datetime import datetime
from unittest.mock import patch

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
    "日本/😀",
    "a\\b&c=d;e,f",
)
KEYS_ID, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
AUTHORIZATION = b"AWS4-HMAC-SHA256 Credential=AK/20261126/eu-west-3/s3/aws4_request, SignedHeaders="
PLAIN = {
    "Authorization": AUTHORIZATION,
    "X-Amz-Date": b"20261126T000000Z",
    "X-Amz-Content-SHA256": b"e3b0",
    "User-Agent": "Boto3/1",
}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "root", ["https://b.s3.eu-west-3.amazonaws.com/", "http://127.0.0.1:8333/b/", "http://[::1]:80/b/"]
)
@pytest.mark.parametrize(("token", "byte_range"), [(None, ""), ("to/ken==", "bytes=1-9")])
def test_the_signature_is_that_of_botocore(key: str, root: str, token: str | None, byte_range: str) -> None:
    credentials = ReadOnlyCredentials(KEYS_ID, SECRET, token)
    host = root.split("/")[2].removesuffix(":80")
    place = S3Place(root, host, "eu-west-3", "clipfleet", bool(token))
    url = place.url_of(key)

    ours = signed_headers(place, url, byte_range, credentials, calendar.timegm((2026, 11, 26, 1, 2, 3)))

    extra = {name: ours[name] for name in ("range", "x-amz-checksum-mode") if name in ours}
    theirs = AWSRequest("GET", url, headers=extra)
    theirs.context["payload_signing_enabled"] = True
    then = datetime.strptime(ours["x-amz-date"], "%Y%m%dT%H%M%SZ")
    with patch("botocore.auth.get_current_datetime", lambda *_, **__: then):  # its own clock
        S3SigV4Auth(credentials, "s3", "eu-west-3").add_auth(theirs)
    assert ours["authorization"] == theirs.headers["Authorization"]
    assert ours.get("x-amz-security-token") == theirs.headers.get("X-Amz-Security-Token")


@pytest.mark.parametrize("key", KEYS)
def test_a_place_is_the_url_before_the_key(key: str) -> None:
    url = S3Place("https://s.example:9000/p/b/", "", "", "", False).url_of(key)

    place = place_of(url, PLAIN, key)

    assert place == S3Place("https://s.example:9000/p/b/", "s.example:9000", "eu-west-3", "Boto3/1", False)
    assert place.url_of(key) == url


def test_a_default_port_is_not_signed() -> None:
    place = place_of("https://s.example:443/b/k", {**PLAIN, "x-amz-checksum-mode": "ENABLED"}, "k")

    assert place is not None
    assert (place.host, place.asks_for_checksums) == ("s.example", True)


@pytest.mark.parametrize(
    "url", ["https://s/b/other", "https://s/b/k?versionId=1", "https://me:secret@s/b/k", "ftp://s/b/k"]
)
def test_what_is_not_at_a_plain_url_has_no_place(url: str) -> None:
    assert place_of("https://s/b/k", PLAIN, "k") is not None
    assert place_of(url, PLAIN, "k") is None


@pytest.mark.parametrize(
    "changes",
    [
        {"Authorization": b""},
        {"Authorization": b"AWS AK:signature"},
        {"Authorization": b"AWS4-ECDSA-P256-SHA256 Credential=AK/20261126/s3/aws4_request, "},
        {"Authorization": AUTHORIZATION.replace(b"/s3/", b"/s3express/")},
        {"X-Amz-S3session-Token": b"t"},
    ],
)
def test_what_is_signed_in_another_way_has_no_place(changes: dict[str, bytes]) -> None:
    assert place_of("https://s/b/k", PLAIN | changes, "k") is None


def test_a_day_has_one_signing_key() -> None:
    day = s3_direct._signing_key("secret", "20261126", "r")
    assert day is s3_direct._signing_key("secret", "20261126", "r")
    assert day != s3_direct._signing_key("secret", "20261127", "r")
