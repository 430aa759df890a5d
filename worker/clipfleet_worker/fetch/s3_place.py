"""Where a bucket's objects are, and how a request for one is signed: AWS Signature Version 4, GET only.

A place is not worked out here but read off a request that boto3 made: endpoint rules, regions and styles of
addressing are boto3's. Nothing is sent.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from time import gmtime, strftime
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

_SAFE_IN_KEYS = "/~"
_AUTHORIZATION = re.compile(r"AWS4-HMAC-SHA256 Credential=[^/, ]+/[0-9]{8}/([^/, ]+)/s3/aws4_request,")
_CHECKSUM_MODE = "x-amz-checksum-mode"
_DATE, _CONTENT, _TOKEN = "x-amz-date", "x-amz-content-sha256", "x-amz-security-token"
_UNDERSTOOD = frozenset({_CHECKSUM_MODE, _DATE, _CONTENT, _TOKEN})
_NO_CONTENT = hashlib.sha256(b"").hexdigest()
_DEFAULT_PORTS = {"http": 80, "https": 443}


class FrozenCredentials(Protocol):
    """Of one moment; botocore's `ReadOnlyCredentials`."""

    access_key: str
    secret_key: str
    token: str | None


@dataclass(frozen=True, slots=True)
class S3Place:
    """What the requests for all objects of a bucket have in common."""

    root: str  # URL up to the key
    host: str  # as it is signed and sent
    region: str
    user_agent: str
    asks_for_checksums: bool
    tls: ssl.SSLContext | None = field(default=None, compare=False)  # None: plain HTTP

    def url_of(self, key: str) -> str:
        """The URL of an object, percent-encoded; a key's dots and slashes stay as they are."""
        return self.root + quote(key, safe=_SAFE_IN_KEYS)


def place_of(url: str, headers: Mapping[str, Any], key: str) -> S3Place | None:
    """The place behind a request of boto3's; None where it was not asked for in the plain way.

    That is: another signature (S3 Express, several regions at once, none at all), headers that are not known
    here, a query.

    Args:
        url: of the request.
        headers: its own, names in any case, values bytes or text.
        key: of the object that it is about.
    """
    texts = {name.lower(): _text(value) for name, value in headers.items()}
    signed = _AUTHORIZATION.match(texts.get("authorization", ""))
    others = {name for name in texts if name.startswith("x-amz-")} - _UNDERSTOOD
    tail = "/" + quote(key, safe=_SAFE_IN_KEYS)
    if signed is None or others or not url.endswith(tail):
        return None
    parts = urlsplit(url)
    if parts.query or parts.fragment or "@" in parts.netloc or parts.scheme not in _DEFAULT_PORTS:
        return None
    host = parts.netloc.removesuffix(f":{_DEFAULT_PORTS[parts.scheme]}")
    return S3Place(
        root=url[: len(url) - len(tail) + 1],
        host=host,
        region=signed[1],
        user_agent=texts.get("user-agent", ""),
        asks_for_checksums=_CHECKSUM_MODE in texts,
    )


def signed_headers(
    place: S3Place, url: str, byte_range: str, credentials: FrozenCredentials, now: float
) -> dict[str, str]:
    """Headers of a GET, the signature among them.

    Args:
        place: see there.
        url: what `place.url_of` gave.
        byte_range: value of the header `Range`; may be empty.
        credentials: to sign with.
        now: seconds since 1970.
    """
    moment = strftime("%Y%m%dT%H%M%SZ", gmtime(now))
    headers = {"host": place.host}  # in the order of their names, as they are signed
    if byte_range:
        headers["range"] = byte_range
    if place.asks_for_checksums:
        headers[_CHECKSUM_MODE] = "ENABLED"
    headers[_CONTENT] = _NO_CONTENT
    headers[_DATE] = moment
    if credentials.token:
        headers[_TOKEN] = credentials.token
    names = ";".join(headers)
    path = url[url.index("/", url.index("://") + 3) :]
    lines = "".join([f"{name}:{value}\n" for name, value in headers.items()])
    request = f"GET\n{path}\n\n{lines}\n{names}\n{_NO_CONTENT}".encode()
    scope = f"{moment[:8]}/{place.region}/s3/aws4_request"
    wanted = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(request).hexdigest()}"
    key = _signing_key(credentials.secret_key, moment[:8], place.region)
    signature = hmac.digest(key, wanted.encode(), "sha256").hex()
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, SignedHeaders={names}, "
        f"Signature={signature}"
    )
    headers["user-agent"] = place.user_agent  # not signed: proxies may change it
    return headers


@lru_cache(maxsize=64)
def _signing_key(secret_key: str, day: str, region: str) -> bytes:
    key = f"AWS4{secret_key}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
