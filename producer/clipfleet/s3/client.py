"""Makes S3 clients, in this one place, and lists objects.

Everything comes from the usual `AWS_*` variables and profiles, endpoints included. What is stored where is
not known here. boto3 is loaded by the first client: it costs every other command a fifth of a second.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypedDict, Unpack
from urllib.parse import urlsplit

from clipfleet.errors import UsageError
from clipfleet.s3.failures import CREDENTIAL_CODES, explain

SCHEME = "s3://"
S3Client = Any  # boto3 makes the class of its clients while it runs

_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}")  # what botocore lets pass
_THIS_MACHINE = ("127.0.0.1", "localhost", "::1")  # no proxy leads there, whatever HTTP_PROXY says


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
        raise UsageError(f"cannot use S3: {explain(error).detail}") from None


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
