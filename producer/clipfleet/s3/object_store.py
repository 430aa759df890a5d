"""Options for Rust's `object_store`, by which Lance reaches S3: endpoint and credentials of our client."""

from __future__ import annotations

from botocore.exceptions import BotoCoreError

from clipfleet.errors import UsageError
from clipfleet.s3.client import SCHEME, default_connection
from clipfleet.s3.failures import explain

_CONNECT_SECONDS, _ANSWER_SECONDS = 5, 60
_ATTEMPTS = 5


def storage_options(uri: str) -> dict[str, str] | None:
    """Options for a place; None for a folder. Read them for each use: credentials may expire.

    Raises:
        UsageError: the configuration of S3 is invalid, or there are no credentials.
    """
    if not uri.startswith(SCHEME):
        return None
    connection = default_connection()
    meta = connection.client.meta
    try:
        keys = connection.credentials.get_frozen_credentials()
    except BotoCoreError as error:
        raise UsageError(f"cannot use S3: {explain(error).detail}") from None
    options = {
        "aws_endpoint": meta.endpoint_url,
        "aws_region": meta.region_name or "us-east-1",
        "aws_access_key_id": keys.access_key,
        "aws_secret_access_key": keys.secret_key,
        "connect_timeout": f"{_CONNECT_SECONDS}s",
        "timeout": f"{_ANSWER_SECONDS}s",
        "client_max_retries": str(_ATTEMPTS),
    }
    if meta.endpoint_url.startswith("http://"):
        options["allow_http"] = "true"
    if keys.token:
        options["aws_session_token"] = keys.token
    return options
