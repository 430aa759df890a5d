"""Makes S3 clients, in this one place, and lists objects.

Configuration comes from the usual `AWS_*` variables and profiles, endpoints included. boto3 is imported with
the first client, which saves other commands 0.2 s.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, TypedDict, Unpack
from urllib.parse import urlsplit

from clipfleet.errors import UsageError
from clipfleet.s3.failures import CREDENTIAL_CODES, explain

SCHEME = "s3://"
S3Client = Any  # boto3 creates the class at run time

_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}")  # as botocore accepts
_THIS_MACHINE = ("127.0.0.1", "localhost", "::1")  # never through HTTP_PROXY


@dataclass(frozen=True, slots=True)
class S3Object:
    """An entry of a listing."""

    key: str
    size_bytes: int
    etag: str = ""  # changes with the content
    modified_at: datetime | None = None


def is_bucket_name(text: str) -> bool:
    """Whether text is a valid bucket name."""
    return _BUCKET.fullmatch(text) is not None


def with_s3_scheme(uri: str) -> str:
    """The URI with the scheme `s3` in lower case; others are left unchanged."""
    return SCHEME + uri[len(SCHEME) :] if uri[: len(SCHEME)].lower() == SCHEME else uri


def split_s3_uri(uri: str) -> tuple[str, str]:
    """Split `s3://bucket/key`. The key is used verbatim, not decoded; it may be empty.

    Raises:
        UsageError: not such a URI.
    """
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if not uri.startswith(SCHEME) or not is_bucket_name(bucket):
        raise UsageError(f"{uri!r} is not an S3 URI: write s3://BUCKET/PATH")
    return bucket, key


class S3Options(TypedDict, total=False):
    """Options of a client; the defaults suit writing."""

    connections: int  # kept open
    connect_timeout_seconds: float  # per attempt
    read_timeout_seconds: float  # upper bound of the store's silence
    attempts: int  # per call, including the first


_OPTIONS: S3Options = {
    "connections": 64,  # more than the slots of a worker
    # A store that accepts requests and never responds fails after 75 s: a chunk is released before its lease
    # expires, which would count as a dead worker.
    "connect_timeout_seconds": 5,
    "read_timeout_seconds": 20,
    "attempts": 3,
}


@dataclass(frozen=True, slots=True)
class S3Connection:
    """A client, with credentials and certificates for callers that send their own requests."""

    client: S3Client
    credentials: Any  # with `get_frozen_credentials()`, which may block; see `credentials.py`
    ca_bundle: str | bool  # file or folder of trusted certificates; True: botocore's own


def make_client(**options: Unpack[S3Options]) -> S3Client:
    """Create a client, see `connect`."""
    return connect(**options).client


def connect(**options: Unpack[S3Options]) -> S3Connection:
    """Create a client with its own session, thread-safe. Sends nothing yet.

    Credentials that the store refuses are reloaded from their origin.

    Raises:
        UsageError: the configuration is invalid (no such profile, malformed endpoint).
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
        # boto3 reads only the older name of the region's variable.
        core, credentials = session_that_rereads()
        session = boto3.session.Session(botocore_session=core)
        region = session.region_name or os.environ.get("AWS_REGION") or None
        client = session.client("s3", config=config, region_name=region)
        if getproxies() and urlsplit(client.meta.endpoint_url).hostname in _THIS_MACHINE:
            direct = config.merge(Config(proxies={}))
            client = session.client("s3", config=direct, region_name=region)
        reread_when_refused(client, credentials, CREDENTIAL_CODES)
        # The same fallback as in botocore, so that both ways trust the same certificates.
        other_ca_bundle = os.environ.get("REQUESTS_CA_BUNDLE") or True
        return S3Connection(client, credentials, core.get_config_variable("ca_bundle") or other_ca_bundle)
    except (BotoCoreError, ValueError) as error:
        raise UsageError(f"cannot use S3: {explain(error).detail}") from None


def goes_through_proxy(url: str) -> bool:
    """Whether a client of `connect` uses a proxy for this URL."""
    from botocore.utils import get_environ_proxies

    parts = urlsplit(url)
    return parts.hostname not in _THIS_MACHINE and parts.scheme in get_environ_proxies(url)


def default_client() -> S3Client:
    """Return the shared client with default options; a new one once `AWS_*` has changed."""
    return default_connection().client


def default_connection() -> S3Connection:
    """Return the shared client as `default_client` does, with its credentials."""
    return _connection_for(tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))))


@lru_cache(maxsize=4)
def _connection_for(_environment: tuple[tuple[str, str], ...]) -> S3Connection:
    return connect()


def list_objects(client: S3Client, bucket: str, prefix: str, *, delimiter: str = "") -> Iterator[S3Object]:
    """List the objects whose key starts with `prefix`, by page, in the store's order (some do not sort).

    The prefix is used verbatim. Keys with the delimiter after it are skipped.
    """
    # Pages are chained by token: starting after a key loses some on SeaweedFS.
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket=bucket, Prefix=prefix, Delimiter=delimiter
    )
    for page in pages:
        for entry in page.get("Contents", ()):
            yield S3Object(entry["Key"], entry["Size"], entry.get("ETag", ""), entry.get("LastModified"))


def list_folders(client: S3Client, bucket: str, prefix: str) -> Iterator[str]:
    """List the folders directly below `prefix`, which is empty or ends in a slash, without their slashes."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
    for page in pages:
        for entry in page.get("CommonPrefixes", ()):
            yield entry["Prefix"][len(prefix) : -1]
