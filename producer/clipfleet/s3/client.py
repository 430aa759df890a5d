"""S3: the one place that makes clients, and that says in one line what is wrong when a store refuses.

Everything comes from the usual `AWS_*` variables and profiles, endpoints included. What is stored where is
not known here. boto3 is loaded by the first client: it costs every other command a fifth of a second.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, TypedDict, Unpack
from urllib.parse import urlsplit

from clipfleet.errors import ClipfleetError, OutputUnavailableError, OutputUnreachableError, UsageError

SCHEME = "s3://"
S3Client = Any  # boto3 makes the class of its clients while it runs

_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}")  # what botocore lets pass
_THIS_MACHINE = ("127.0.0.1", "localhost", "::1")  # no proxy leads there, whatever HTTP_PROXY says


class S3Problem(StrEnum):
    """Kinds of refusal."""

    NO_OBJECT = "no_object"
    NO_BUCKET = "no_bucket"
    DENIED = "denied"
    NO_CREDENTIALS = "no_credentials"
    EXPIRED = "expired"  # credentials that were good
    CLOCK = "clock"  # the two machines' clocks differ too much for a signature
    MISCONFIGURED = "misconfigured"  # endpoint, profile or region
    REFUSED = "refused"  # any other answer that repeating does not change
    THROTTLED = "throttled"
    AWAY = "away"  # no answer, or one that tells of a fault of the store


_CREDENTIALS = (S3Problem.NO_CREDENTIALS, S3Problem.EXPIRED)


@dataclass(frozen=True, slots=True)
class S3Failure:
    """Why a call failed."""

    problem: S3Problem
    detail: str  # one line, with the way out where there is one

    @property
    def waiting_helps(self) -> bool:
        """Whether the same call may succeed later.

        Also where credentials are missing or refused: they are renewed behind a running program's back, and
        the service that hands them out may be away.
        """
        return self.problem in (*_CREDENTIALS, S3Problem.CLOCK, S3Problem.THROTTLED, S3Problem.AWAY)


@dataclass(frozen=True, slots=True)
class S3Object:
    """An entry of a listing."""

    key: str
    size_bytes: int
    etag: str = ""  # changes with the content


def is_bucket_name(text: str) -> bool:
    """Whether a bucket may be called so."""
    return _BUCKET.fullmatch(text) is not None


def split_s3_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of `s3://bucket/key`. The key is taken as it stands, not decoded; it may be empty.

    Raises:
        UsageError: this is no such URI.
    """
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if not uri.startswith(SCHEME) or not is_bucket_name(bucket):
        raise UsageError(f"{uri!r} is not an S3 URI: write s3://BUCKET/PATH")
    return bucket, key


class S3Options(TypedDict, total=False):
    """How a client asks; what is left out is as for writing."""

    connections: int  # kept open at a time
    connect_timeout_seconds: float  # per attempt
    read_timeout_seconds: float  # longest silence of the store
    attempts: int  # of one call, the first included


_OPTIONS: S3Options = {
    "connections": 64,  # more than a worker has slots
    # A store that takes requests and never answers is found out after 75 s: so a chunk is given back to wait
    # for better times before its lease runs out, which would count as a dead worker.
    "connect_timeout_seconds": 5,
    "read_timeout_seconds": 20,
    "attempts": 3,
}


@dataclass(frozen=True, slots=True)
class S3Connection:
    """A client, and what its requests are signed and checked with, for those who ask on their own."""

    client: S3Client
    credentials: Any  # has `get_frozen_credentials()`, which may wait for the network; see `s3_credentials`
    ca_bundle: str | bool  # file or folder of the certificates that are trusted; True: botocore's own


def make_client(**options: Unpack[S3Options]) -> S3Client:
    """The client of a new `connect`."""
    return connect(**options).client


def connect(**options: Unpack[S3Options]) -> S3Connection:
    """A client of its own session, for any number of threads. Nothing is sent yet.

    Credentials that the store refuses are read again, from wherever they came.

    Raises:
        UsageError: the configuration cannot be used (no such profile, no URL as endpoint).
    """
    from urllib.request import getproxies

    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    from clipfleet.s3.credentials import reread_when_refused, session_that_rereads

    chosen: S3Options = {**_OPTIONS, **options}
    config = Config(
        connect_timeout=chosen["connect_timeout_seconds"],
        read_timeout=chosen["read_timeout_seconds"],
        max_pool_connections=chosen["connections"],
        retries={"mode": "standard", "total_max_attempts": chosen["attempts"]},
        tcp_keepalive=True,
        user_agent_extra="clipfleet",
    )
    try:
        # boto3 knows the region's variable only by its older name.
        core, credentials = session_that_rereads()
        session = boto3.session.Session(botocore_session=core)
        region = session.region_name or os.environ.get("AWS_REGION") or None
        client = session.client("s3", config=config, region_name=region)
        if getproxies() and urlsplit(client.meta.endpoint_url).hostname in _THIS_MACHINE:
            direct = config.merge(Config(proxies={}))
            client = session.client("s3", config=direct, region_name=region)
        reread_when_refused(client, credentials, CREDENTIAL_CODES)
        # Where botocore looks beside its own variable: nowhere else, so that both ways trust the same.
        other_ca_bundle = os.environ.get("REQUESTS_CA_BUNDLE") or True
        return S3Connection(client, credentials, core.get_config_variable("ca_bundle") or other_ca_bundle)
    except (BotoCoreError, ValueError) as error:
        raise UsageError(f"S3 cannot be used: {explain(error).detail}") from None


def goes_through_proxy(url: str) -> bool:
    """Whether a client of `connect` asks a proxy for this URL."""
    from botocore.utils import get_environ_proxies

    parts = urlsplit(url)
    return parts.hostname not in _THIS_MACHINE and parts.scheme in get_environ_proxies(url)


def default_client() -> S3Client:
    """The client that everything without special wishes shares; another one once `AWS_*` has changed."""
    return _client_for(tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))))


@lru_cache(maxsize=4)
def _client_for(_environment: tuple[tuple[str, str], ...]) -> S3Client:
    return make_client()


def list_objects(client: S3Client, bucket: str, prefix: str, *, delimiter: str = "") -> Iterator[S3Object]:
    """All objects whose key starts with `prefix`, page by page, in the store's order (some do not sort).

    The prefix is taken as it stands. Keys that have the delimiter after it are left out.
    """
    # Pages follow from one another by token: a start after a key loses some on SeaweedFS.
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket=bucket, Prefix=prefix, Delimiter=delimiter
    )
    for page in pages:
        for entry in page.get("Contents", ()):
            yield S3Object(entry["Key"], entry["Size"], entry.get("ETag", ""))


@contextmanager
def s3_errors(
    where: str,
    *,
    away: type[ClipfleetError] = OutputUnavailableError,
    lasting: type[ClipfleetError] = OutputUnreachableError,
) -> Iterator[None]:
    """Turn what boto3 raises into `away` where waiting may help, else into `lasting`.

    Args:
        where: URI that the message begins with.
        away: raised when the store does not answer, or asks to come later.
        lasting: raised for everything else, missing objects included.
    """
    try:
        yield
    except failures_of_calls() as error:
        failure = explain(error)
        raise (away if failure.waiting_helps else lasting)(f"{where}: {failure.detail}") from error


def failures_of_calls() -> tuple[type[Exception], ...]:
    """What a call of boto3 raises that has failed.

    Not only its own exceptions: where the body of a refusal breaks off, those of its libraries come through,
    and where an endpoint redirects, it follows until Python ends that.
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    return BotoCoreError, ClientError, ResponseParserError, HTTPError, RecursionError


def explain(error: Exception) -> S3Failure:
    """What an exception of boto3 means."""
    from botocore.exceptions import ClientError

    if isinstance(error, ClientError):
        return _explain_answer(error.response)
    if _is_redirected(error):
        where = "is it https://, and the store's own address?"
        return S3Failure(S3Problem.MISCONFIGURED, f"the endpoint redirects; see AWS_ENDPOINT_URL: {where}")
    kind = _LOCAL_PROBLEMS.get(type(error).__name__, S3Problem.AWAY)
    if isinstance(error, ValueError) and kind is S3Problem.AWAY:  # botocore's way to refuse an endpoint
        kind = S3Problem.MISCONFIGURED
    text = " ".join(str(error).split()).rstrip(".")
    if type(error).__name__ in _NO_CONNECTION:
        text += "; is the store up, and AWS_ENDPOINT_URL right?"
    return S3Failure(kind, f"{text}{_WAYS_OUT.get(kind, '')}")


def _is_redirected(error: Exception) -> bool:
    """Whether botocore went in circles: to find the region of a bucket it asks what redirects again."""
    return isinstance(error, RecursionError) or isinstance(
        getattr(error, "kwargs", {}).get("error"), RecursionError
    )


# By name, so that botocore need not be loaded for this table. What is missing here is trouble of the network.
_LOCAL_PROBLEMS = {
    "NoCredentialsError": S3Problem.NO_CREDENTIALS,
    "PartialCredentialsError": S3Problem.NO_CREDENTIALS,
    "TokenRetrievalError": S3Problem.NO_CREDENTIALS,
    "CredentialRetrievalError": S3Problem.NO_CREDENTIALS,
    "MetadataRetrievalError": S3Problem.NO_CREDENTIALS,
    "SSOTokenLoadError": S3Problem.NO_CREDENTIALS,
    "UnauthorizedSSOTokenError": S3Problem.NO_CREDENTIALS,
    "ProfileNotFound": S3Problem.MISCONFIGURED,
    "ConfigParseError": S3Problem.MISCONFIGURED,
    "ConfigNotFound": S3Problem.MISCONFIGURED,
    "InvalidConfigError": S3Problem.MISCONFIGURED,
    "InvalidRegionError": S3Problem.MISCONFIGURED,
    "NoRegionError": S3Problem.MISCONFIGURED,
    "SSLError": S3Problem.MISCONFIGURED,
    "ParamValidationError": S3Problem.REFUSED,
}
_NO_CONNECTION = ("EndpointConnectionError", "ConnectTimeoutError", "ConnectionClosedError")
_WAYS_OUT = {
    S3Problem.NO_BUCKET: "; make the bucket, or name another",
    S3Problem.DENIED: "; these credentials need the rights GetObject, PutObject, DeleteObject, ListBucket",
    S3Problem.NO_CREDENTIALS: "; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    S3Problem.EXPIRED: "; renew the credentials where they come from: they are read again",
    S3Problem.CLOCK: "; set this machine's clock",
    S3Problem.MISCONFIGURED: "; see AWS_ENDPOINT_URL, AWS_PROFILE, AWS_REGION and AWS_CA_BUNDLE",
}


def _explain_answer(response: dict[str, Any]) -> S3Failure:
    """An answer of the store that is not a success."""
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    kind = _ANSWERS.get(code) or _problem_of_status(status)
    text = " ".join(str(response.get("Error", {}).get("Message") or "").split()).rstrip(".")
    said = text if code in ("", str(status)) or not text else f"{code}: {text}"
    return S3Failure(kind, f"the store answers {status} ({said or code}){_WAYS_OUT.get(kind, '')}")


_ANSWERS = {
    "NoSuchKey": S3Problem.NO_OBJECT,
    "NoSuchBucket": S3Problem.NO_BUCKET,
    "AccessDenied": S3Problem.DENIED,
    "AllAccessDisabled": S3Problem.DENIED,
    "InvalidAccessKeyId": S3Problem.NO_CREDENTIALS,
    "SignatureDoesNotMatch": S3Problem.NO_CREDENTIALS,
    "InvalidToken": S3Problem.NO_CREDENTIALS,
    "ExpiredToken": S3Problem.EXPIRED,
    "ExpiredTokenException": S3Problem.EXPIRED,
    "AuthorizationHeaderMalformed": S3Problem.MISCONFIGURED,
    "PermanentRedirect": S3Problem.MISCONFIGURED,
    "RequestTimeTooSkewed": S3Problem.CLOCK,
    "SlowDown": S3Problem.THROTTLED,
    "Throttling": S3Problem.THROTTLED,
    "RequestTimeout": S3Problem.AWAY,
    "OperationAborted": S3Problem.AWAY,
}
CREDENTIAL_CODES = frozenset(code for code, problem in _ANSWERS.items() if problem in _CREDENTIALS)


def _problem_of_status(status: int) -> S3Problem:
    if status >= 500 or status == 0:
        return S3Problem.THROTTLED if status == 503 else S3Problem.AWAY
    by_status = {
        301: S3Problem.MISCONFIGURED,
        401: S3Problem.DENIED,
        403: S3Problem.DENIED,
        404: S3Problem.NO_OBJECT,
        408: S3Problem.AWAY,
        409: S3Problem.AWAY,
        429: S3Problem.THROTTLED,
    }
    return by_status.get(status, S3Problem.REFUSED)
