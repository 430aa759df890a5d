"""Objects through boto3, in threads: the first of each bucket, and all that `direct` does not support.

boto3 finds endpoint, region, addressing and credentials, follows a bucket to its region and reloads
credentials that the store refuses. Its final request is returned with the bytes, so that later objects need
none of this. Blocks; knows nothing of turns and event loops.

The failures of both ways are defined here: boto3's exceptions and the store's own responses give the same
ones.
"""

from __future__ import annotations

import re
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import ClientError
from botocore.parsers import create_parser

from clipfleet.contract.jobs import ErrorCode
from clipfleet.errors import SourceUnavailableError, UsageError
from clipfleet.s3.client import SCHEME, S3Connection, goes_through_proxy
from clipfleet.s3.failures import S3Problem, explain, failures_of_calls
from clipfleet_worker.failures import ItemFailure, TransientFailure, too_many_bytes
from clipfleet_worker.fetch.conditions import validators_of
from clipfleet_worker.outcomes import Validators

_READ_BYTES = 1 << 20
_SAFE_IN_KEYS = "/~"
_AUTHORIZATION = re.compile(r"AWS4-HMAC-SHA256 Credential=[^/, ]+/[0-9]{8}/([^/, ]+)/s3/aws4_request,")
NOT_MODIFIED = 304
CHECKSUM_MODE = "x-amz-checksum-mode"
_UNDERSTOOD = frozenset({CHECKSUM_MODE, "x-amz-date", "x-amz-content-sha256", "x-amz-security-token"})
_DEFAULT_PORTS = {"http": 80, "https": 443}

_CODES = {
    S3Problem.NO_OBJECT: ErrorCode.NOT_FOUND,
    S3Problem.NO_BUCKET: ErrorCode.NOT_FOUND,
    S3Problem.DENIED: ErrorCode.ACCESS_DENIED,
    S3Problem.NO_CREDENTIALS: ErrorCode.ACCESS_DENIED,
    S3Problem.MISCONFIGURED: ErrorCode.HTTP_ERROR,
    S3Problem.REFUSED: ErrorCode.HTTP_ERROR,
    S3Problem.THROTTLED: ErrorCode.RATE_LIMITED,
    S3Problem.AWAY: ErrorCode.SERVER_ERROR,
}
# Temporary problems that no object causes: the chunk waits.
_OURS = (S3Problem.EXPIRED, S3Problem.CLOCK)
# By the name of botocore's exception.
_NETWORK_CODES = {
    "ParamValidationError": ErrorCode.BAD_URI,
    "SSLError": ErrorCode.TLS_FAILED,
    "ConnectTimeoutError": ErrorCode.CONNECT_FAILED,
    "ReadTimeoutError": ErrorCode.TIMEOUT,
    "ResponseStreamingError": ErrorCode.INCOMPLETE_BODY,
    "IncompleteReadError": ErrorCode.INCOMPLETE_BODY,
    "FlexibleChecksumError": ErrorCode.INCOMPLETE_BODY,
    "ConnectionClosedError": ErrorCode.INCOMPLETE_BODY,
    "ProtocolError": ErrorCode.INCOMPLETE_BODY,
    "EndpointConnectionError": ErrorCode.CONNECT_FAILED,
    "ProxyConnectionError": ErrorCode.CONNECT_FAILED,
}
_TRANSIENT = frozenset(
    {
        ErrorCode.RATE_LIMITED,
        ErrorCode.SERVER_ERROR,
        ErrorCode.CONNECT_FAILED,
        ErrorCode.TIMEOUT,
        ErrorCode.INCOMPLETE_BODY,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Limits:
    """What one object may cost."""

    max_image_bytes: int
    fetch_timeout_seconds: float  # from the request to the last byte, without the wait for a turn
    connections: int  # objects at a time
    connect_timeout_seconds: float = 10.0  # TCP and TLS
    idle_read_timeout_seconds: float = 15.0  # longest silence of the store


@dataclass(frozen=True, slots=True)
class S3Place:
    """What the requests for all objects of a bucket have in common.

    It is taken from a request of boto3, which knows endpoint rules, regions and styles of addressing.
    """

    root: str  # URL up to the key
    host: str  # as it is signed and sent
    region: str
    user_agent: str
    asks_for_checksums: bool
    tls: ssl.SSLContext | None = field(default=None, compare=False)  # None: plain HTTP

    def url_of(self, key: str) -> str:
        """The URL of an object, percent-encoded; a key's dots and slashes stay as they are."""
        return self.root + quote(key, safe=_SAFE_IN_KEYS)


@dataclass(frozen=True, slots=True)
class S3Answer:
    """An object, and what the store says of its version."""

    data: bytes | None  # None: it has the ETag that was sent
    validators: Validators


@dataclass(frozen=True, slots=True)
class Learned:
    """An answer, and where it came from."""

    answer: S3Answer
    place: S3Place | None  # None: objects of its bucket have to come through boto3


class BotoReader:
    """Reads objects. Thread-safe.

    Args:
        limits: of each object.
        connect: called for the first object, so that a worker that reads none needs no configuration.
    """

    def __init__(self, limits: S3Limits, connect: Callable[[], S3Connection]) -> None:
        self._limits = limits
        self._connect = connect
        self._connection: S3Connection | None = None
        self._lock = threading.Lock()
        self._tls: ssl.SSLContext | None = None
        self._sent = threading.local()  # `request`: the last one of this thread's call

    def get(self, bucket: str, key: str, byte_range: str, known_etag: str = "") -> Learned:
        """An object, or a range of its bytes, as the header `Range` puts it, unless it has a known ETag.

        Raises:
            ItemFailure: it cannot be read.
            SourceUnavailableError: no object can be read now.
        """
        ends = time.monotonic() + self._limits.fetch_timeout_seconds
        wanted = {"Bucket": bucket, "Key": key, "Range": byte_range, "IfNoneMatch": known_etag}
        wanted = {name: value for name, value in wanted.items() if value}
        self._sent.request = None
        try:
            answer = self._connected().client.get_object(**wanted)
            with closing(answer["Body"]) as body:
                if (answer.get("ContentLength") or 0) > self._limits.max_image_bytes:
                    raise too_many_bytes(self._limits.max_image_bytes)
                found = S3Answer(self._read_all(body, ends), _validators(answer))
                return Learned(found, self._place(key))
        except failures_of_calls() as error:
            if known_etag and isinstance(error, ClientError) and _status(error.response) == NOT_MODIFIED:
                return Learned(S3Answer(None, _validators(error.response)), self._place(key))
            raise failure_of_call(bucket, error) from error

    def credentials(self) -> ReadOnlyCredentials:
        """The client's current credentials; may wait for the service that issues them.

        Raises:
            Exception: one of `clipfleet.s3.failures.failures_of_calls`.
        """
        return self._connected().credentials.get_frozen_credentials()

    def too_late(self) -> ItemFailure:
        """The failure of an object that took too long."""
        return TransientFailure(
            ErrorCode.TIMEOUT, f"not read within {self._limits.fetch_timeout_seconds:g} s"
        )

    def _read_all(self, body: Any, ends: float) -> bytes:
        parts = []
        total = 0
        while part := body.read(_READ_BYTES):
            total += len(part)
            if total > self._limits.max_image_bytes:
                raise too_many_bytes(self._limits.max_image_bytes)
            if time.monotonic() > ends:
                raise self.too_late()
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _connected(self) -> S3Connection:
        with self._lock:
            if self._connection is None:
                try:
                    self._connection = self._connect()
                except UsageError as error:
                    raise ItemFailure(ErrorCode.ACCESS_DENIED, str(error)) from error
                self._connection.client.meta.events.register("before-send.s3.GetObject", self._sends)
            return self._connection

    def _sends(self, request: Any, **_: object) -> None:
        """Called by boto3, in the thread of the call, before each of its attempts."""
        self._sent.request = request

    def _place(self, key: str) -> S3Place | None:
        request = self._sent.request
        if request is None or goes_through_proxy(request.url):
            return None
        place = place_of(request.url, request.headers, key)
        if place is None or not place.root.startswith("https:"):
            return place
        return replace(place, tls=self._trusted())

    def _trusted(self) -> ssl.SSLContext:
        """The certificates that boto3 trusts."""
        from botocore.httpsession import get_cert_path

        connection = self._connected()
        with self._lock:
            if self._tls is None:
                path = get_cert_path(connection.ca_bundle)
                is_folder = Path(path).is_dir()
                self._tls = ssl.create_default_context(
                    cafile=None if is_folder else path, capath=path if is_folder else None
                )
            return self._tls


def _status(answer: Any) -> int:
    found: int = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return found


def _validators(answer: Any) -> Validators:
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return validators_of(headers)  # in lower case here


def failure_of_call(bucket: str, error: Exception) -> ItemFailure | SourceUnavailableError:
    """The failure for an exception of a call of boto3.

    Args:
        bucket: that was asked.
        error: one of `clipfleet.s3.failures.failures_of_calls`.
    """
    failure = explain(error)
    if failure.problem in _OURS:
        return SourceUnavailableError(f"{SCHEME}{bucket}: {failure.detail}")
    named = (_NETWORK_CODES.get(kind.__name__) for kind in type(error).__mro__)
    code = next((code for code in named if code is not None), None)
    if code is None and not isinstance(error, ClientError) and failure.problem is S3Problem.AWAY:
        code = ErrorCode.CONNECT_FAILED
    return failure_with(code or _CODES[failure.problem], failure.detail)


def failure_with(code: ErrorCode, detail: str) -> ItemFailure:
    """A failure of this code; transient if a retry may help."""
    return (TransientFailure if code in _TRANSIENT else ItemFailure)(code, detail)


def refusal_of(status: int, headers: Mapping[str, str], body: bytes) -> ClientError:
    """The exception that boto3 would raise for a response that is no success."""
    answer = {"status_code": status, "headers": headers, "body": body}
    return ClientError(create_parser("rest-xml").parse(answer, None), "GetObject")


def place_of(url: str, headers: Mapping[str, Any], key: str) -> S3Place | None:
    """The place of a request of boto3's; None if `direct` cannot make such a request.

    That is: with another signature (S3 Express, several regions at once, none at all), with unknown headers,
    or with a query.

    Args:
        url: of the request.
        headers: of the request, names in any case, values bytes or text.
        key: of the object.
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
        asks_for_checksums=CHECKSUM_MODE in texts,
    )


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
