"""Objects without boto3, once it has found their place: no threads, at most a third of its CPU time.

Measured with `python -m ops.bench.s3_read`. The session is for the store only: no redirects, no cookies, no
proxies, and apart from the session for public URLs with its address guard. If place or credentials are
outdated, boto3 has to read the object.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from time import gmtime, strftime

import aiohttp
from botocore.credentials import ReadOnlyCredentials
from botocore.httpchecksum import Crc32Checksum, Sha1Checksum, Sha256Checksum
from yarl import URL

from clipfleet.contract.jobs import ErrorCode
from clipfleet.s3.failures import CREDENTIAL_CODES, failures_of_calls
from clipfleet_worker.failures import ItemFailure, too_many_bytes
from clipfleet_worker.fetch.conditions import validators_of
from clipfleet_worker.fetch.s3.boto import (
    CHECKSUM_MODE,
    NOT_MODIFIED,
    S3Answer,
    S3Limits,
    S3Place,
    failure_of_call,
    failure_with,
    refusal_of,
)

_CREDENTIAL_SECONDS = 30.0  # boto3 renews its own a quarter of an hour before they expire
_REFUSAL_BYTES = 64 << 10  # more of a refusal is not read
_ELSEWHERE_STATUSES = frozenset({301, 302, 303, 307, 308})
_ELSEWHERE_CODES = frozenset(
    {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
)
_DATE, _CONTENT, _TOKEN = "x-amz-date", "x-amz-content-sha256", "x-amz-security-token"
_NO_CONTENT = hashlib.sha256(b"").hexdigest()
_CHECKSUMS = {
    "x-amz-checksum-crc32": Crc32Checksum,
    "x-amz-checksum-sha1": Sha1Checksum,
    "x-amz-checksum-sha256": Sha256Checksum,
}  # botocore supports others only with further packages


class PlaceOutdatedError(Exception):
    """The bucket has moved, or other credentials are needed."""


class DirectReader:
    """Reads objects; all methods belong to one event loop.

    Args:
        limits: of each object; the caller limits the number of calls.
        load_credentials: returns those to sign with; called in a thread, since it may block.
        monotonic: the clock for the age of credentials.
    """

    def __init__(
        self,
        limits: S3Limits,
        load_credentials: Callable[[], ReadOnlyCredentials],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._load_credentials = load_credentials
        self._monotonic = monotonic
        self._credentials: ReadOnlyCredentials | None = None
        self._loaded_at = 0.0
        self._loading = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Open the session in the running loop."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,  # the object as it is, as from boto3
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
            timeout=aiohttp.ClientTimeout(
                total=None,
                sock_connect=self._limits.connect_timeout_seconds,
                sock_read=self._limits.idle_read_timeout_seconds,
            ),
        )

    async def close(self) -> None:
        """Abort all requests; idempotent."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(
        self, place: S3Place, bucket: str, key: str, byte_range: str, known_etag: str = ""
    ) -> S3Answer:
        """An object, or a range of its bytes, as the header `Range` puts it, unless it has a known ETag.

        Raises:
            PlaceOutdatedError: boto3 has to read it.
            ItemFailure: the object cannot be read.
            SourceUnavailableError: no object can be read now.
        """
        if self._session is None:
            raise RuntimeError("start comes first")
        url = place.url_of(key)
        headers = signed_headers(place, url, byte_range, await self._current(bucket), time.time())
        if known_etag:
            headers["if-none-match"] = known_etag  # not signed: it need not be
        try:
            response = await self._session.get(
                URL(url, encoded=True), headers=headers, allow_redirects=False, ssl=place.tls or True
            )
        except (aiohttp.ClientError, OSError) as error:
            raise _failure_before_answer(place.host, error) from error
        try:
            if known_etag and response.status == NOT_MODIFIED:
                return S3Answer(None, validators_of(response.headers))
            if response.status not in (200, 206):
                raise await self._refusal(bucket, response)
            data = await self._body(place.host, response)
        except TimeoutError as error:
            raise _silence(place.host, error) from error
        except (aiohttp.ClientError, OSError) as error:
            raise failure_with(ErrorCode.INCOMPLETE_BODY, f"{place.host}: the body broke off") from error
        finally:
            response.close()
        if response.status == 200:
            _require_same(place.host, data, response.headers)
        return S3Answer(data, validators_of(response.headers))

    def forget_credentials(self) -> None:
        """Load credentials again for the next object."""
        self._credentials = None

    async def _current(self, bucket: str) -> ReadOnlyCredentials:
        if self._credentials is not None and (
            self._monotonic() - self._loaded_at < _CREDENTIAL_SECONDS or self._loading.locked()
        ):
            return self._credentials
        async with self._loading:
            if self._credentials is None or self._monotonic() - self._loaded_at >= _CREDENTIAL_SECONDS:
                try:
                    self._credentials = await asyncio.to_thread(self._load_credentials)
                except failures_of_calls() as error:
                    raise failure_of_call(bucket, error) from error
                self._loaded_at = self._monotonic()
            return self._credentials

    async def _refusal(self, bucket: str, response: aiohttp.ClientResponse) -> Exception:
        body = b""
        while len(body) < _REFUSAL_BYTES and (part := await response.content.readany()):
            body += part
        error = refusal_of(response.status, response.headers, body)
        code = error.response.get("Error", {}).get("Code", "")
        if response.status in _ELSEWHERE_STATUSES or code in _ELSEWHERE_CODES | CREDENTIAL_CODES:
            return PlaceOutdatedError(code)
        return failure_of_call(bucket, error)

    async def _body(self, host: str, response: aiohttp.ClientResponse) -> bytes:
        length, limit = response.content_length, self._limits.max_image_bytes
        if length is None and "chunked" not in response.headers.get("Transfer-Encoding", "").lower():
            # Any end of the connection would count as the end of the object.
            raise failure_with(ErrorCode.INCOMPLETE_BODY, f"{host}: the response has no length")
        if (length or 0) > limit:
            raise too_many_bytes(limit)
        parts = []
        total = 0
        while part := await response.content.readany():
            total += len(part)
            if total > limit:
                raise too_many_bytes(limit)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def signed_headers(
    place: S3Place, url: str, byte_range: str, credentials: ReadOnlyCredentials, now: float
) -> dict[str, str]:
    """Headers of a GET, signed by AWS Signature Version 4: botocore's own signer takes ten times as long.

    Args:
        place: of the object.
        url: the result of `place.url_of`.
        byte_range: value of the header `Range`; may be empty.
        credentials: to sign with.
        now: seconds since 1970.
    """
    moment = strftime("%Y%m%dT%H%M%SZ", gmtime(now))
    headers = {"host": place.host}  # in the order of their names, as they are signed
    if byte_range:
        headers["range"] = byte_range
    if place.asks_for_checksums:
        headers[CHECKSUM_MODE] = "ENABLED"
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


def _require_same(host: str, data: bytes, headers: Mapping[str, str]) -> None:
    """Compare with the checksums that the store sends, except for uploads in parts, whose cover the parts."""
    for name, value in headers.items():
        checksum = _CHECKSUMS.get(name.lower())
        if checksum is not None and "-" not in value and checksum().handle(data) != value:
            raise failure_with(ErrorCode.INCOMPLETE_BODY, f"{host}: the bytes do not fit their checksum")


def _failure_before_answer(host: str, error: aiohttp.ClientError | OSError) -> ItemFailure:
    if isinstance(error, TimeoutError):
        return _silence(host, error)
    if isinstance(error, aiohttp.ClientSSLError):
        way_out = "see AWS_ENDPOINT_URL and AWS_CA_BUNDLE"
        return failure_with(ErrorCode.TLS_FAILED, f"{host}: {error}; {way_out}")
    if isinstance(error, aiohttp.ClientConnectorError):
        way_out = "is the store up, and AWS_ENDPOINT_URL right?"
        return failure_with(ErrorCode.CONNECT_FAILED, f"{host}: no connection ({error.os_error}); {way_out}")
    return failure_with(ErrorCode.INCOMPLETE_BODY, f"{host}: the connection broke before an answer came")


def _silence(host: str, error: TimeoutError) -> ItemFailure:
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        way_out = "is the store up, and AWS_ENDPOINT_URL right?"
        return failure_with(ErrorCode.CONNECT_FAILED, f"{host}: no connection in time; {way_out}")
    return failure_with(ErrorCode.TIMEOUT, f"{host}: fell silent")
