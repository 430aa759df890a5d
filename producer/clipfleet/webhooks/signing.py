"""Signs webhook requests, and checks such signatures, as Standard Webhooks 1.0.0 says.

A signature is HMAC-SHA256 over id, time of the attempt and body. During a rotation each request carries one
signature per secret.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from clipfleet.contract.webhooks import secret_bytes
from clipfleet.errors import SignatureError, UsageError

ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER = "webhook-id", "webhook-timestamp", "webhook-signature"
TOLERANCE_SECONDS = 300  # between the clocks of sender and receiver, and against replayed requests

_VERSION = "v1"


def signed_headers(secrets: Sequence[str], event_id: str, attempted_at: int, body: bytes) -> dict[str, str]:
    """The three headers of a request.

    Args:
        secrets: of the endpoint, one signature each.
        event_id: the same at each attempt.
        attempted_at: seconds since 1970 at this attempt.
        body: as it is sent.

    Raises:
        UsageError: a secret is not a secret.
    """
    return {
        ID_HEADER: event_id,
        TIMESTAMP_HEADER: str(attempted_at),
        SIGNATURE_HEADER: " ".join(_signature(secret, event_id, attempted_at, body) for secret in secrets),
    }


def verify(
    body: bytes | str,
    headers: Mapping[str, str],
    secret: str,
    *,
    now: float | None = None,
    tolerance_seconds: float = TOLERANCE_SECONDS,
) -> dict[str, Any]:
    """Check the signature of a request that was received, and return the event in it.

    Args:
        body: as it was received, byte for byte.
        headers: of the request; names in any case.
        secret: of the endpoint.
        now: seconds since 1970; default: this machine's clock.
        tolerance_seconds: that the time of the attempt may differ from now, in both directions.

    Raises:
        SignatureError: a header is missing, the request is too old or too new, or no signature is valid.
        UsageError: the secret is not a secret.
    """
    found = {name.lower(): value for name, value in headers.items()}
    missing = [name for name in (ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER) if name not in found]
    if missing:
        raise SignatureError(f"webhook request without {', '.join(missing)}")
    content = body.encode() if isinstance(body, str) else body
    attempted_at = _seconds_of(found[TIMESTAMP_HEADER])
    if abs((time.time() if now is None else now) - attempted_at) > tolerance_seconds:
        raise SignatureError(
            f"webhook request of another time: {TIMESTAMP_HEADER} is more than {tolerance_seconds:g} s away; "
            "check the clock of this machine"
        )
    expected = _signature(secret, found[ID_HEADER], attempted_at, content).encode()
    # All are compared, so that the time says nothing about which one differs where.
    equal = [hmac.compare_digest(expected, _bytes_of(one)) for one in found[SIGNATURE_HEADER].split(" ")]
    if not any(equal):
        raise SignatureError("webhook request with another signature: check the secret, and the raw body")
    return _event_of(content)


def _signature(secret: str, event_id: str, attempted_at: int, body: bytes) -> str:
    message = _bytes_of(f"{event_id}.{attempted_at}.") + body
    digest = hmac.new(_key_of(secret), message, hashlib.sha256).digest()
    return f"{_VERSION},{base64.b64encode(digest).decode()}"


def _bytes_of(header: str) -> bytes:
    return header.encode("utf-8", "replace")  # what was received may be no UTF-8


def _key_of(secret: str) -> bytes:
    try:
        return secret_bytes(secret)
    except ValueError as error:
        raise UsageError(f"webhook secret: {error}; take it as `clipfleet webhooks add` printed it") from None


def _seconds_of(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise SignatureError(f"webhook request whose {TIMESTAMP_HEADER} is not a number of seconds")
    return int(text)


def _event_of(content: bytes) -> dict[str, Any]:
    try:
        event = json.loads(content)
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict):
        raise SignatureError("webhook request whose body is not a JSON object")
    return event
