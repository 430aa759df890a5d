"""Turns the status of a response, or aiohttp's exception, into an `ItemFailure`.

Details name the host and repeat nothing else of the URL.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import time
from collections.abc import Mapping

import aiohttp

from clipfleet.contract.jobs import ErrorCode
from clipfleet_worker.failures import ItemFailure, TransientFailure
from clipfleet_worker.fetch.http.address_guard import AddressRefusedError
from clipfleet_worker.fetch.http.dates import seconds_of
from clipfleet_worker.fetch.http.metered_sockets import FloodError

_STATUS_CODES = {
    401: ErrorCode.ACCESS_DENIED,
    403: ErrorCode.ACCESS_DENIED,
    404: ErrorCode.NOT_FOUND,
    410: ErrorCode.NOT_FOUND,
    429: ErrorCode.RATE_LIMITED,
}
# The last ones come from proxies in front of a server that is down.
_TRANSIENT = frozenset({429, 500, 502, 503, 504, 520, 521, 522, 523, 524})
_SECONDS = re.compile(r"[0-9]{1,9}")


def failure_of_status(host: str, status: int, headers: Mapping[str, str]) -> ItemFailure:
    """The failure for a response that is neither 200 nor a redirect."""
    default = ErrorCode.SERVER_ERROR if status >= 500 else ErrorCode.HTTP_ERROR
    code, detail = _STATUS_CODES.get(status, default), f"{host}: HTTP status {status}"
    if status not in _TRANSIENT:
        return ItemFailure(code, detail)
    seconds = retry_after_seconds(headers)
    if seconds is not None:
        detail += f", Retry-After {seconds:.0f} s"
    return TransientFailure(code, detail, retry_after_seconds=seconds)


def retry_after_seconds(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds of `Retry-After` from now; None without a valid one.

    Args:
        headers: of a response. A date is compared with the server's own `Date`, from the same clock.
        now: seconds since 1970 for a server without `Date`; by default this machine's clock.
    """
    value = headers.get("Retry-After", "").strip()
    if _SECONDS.fullmatch(value):
        return float(value)
    until = seconds_of(value)
    if until is None:
        return None
    sent = seconds_of(headers.get("Date", ""))
    if sent is None:
        sent = time.time() if now is None else now
    return max(0.0, until - sent)


def failure_before_answer(host: str, error: aiohttp.ClientError | OSError | ValueError) -> ItemFailure:
    """The failure of a request without a readable response."""
    if _is_flood(error):
        return ItemFailure(ErrorCode.HTTP_ERROR, f"{host}: sent too many bytes instead of a response")
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, AddressRefusedError):
        return ItemFailure(ErrorCode.ADDRESS_REFUSED, f"{host}: {cause}")
    if isinstance(error, aiohttp.InvalidURL):
        # What aiohttp still refuses: 127.1, 2130706433 and other disguises of an IPv4 address.
        return ItemFailure(ErrorCode.ADDRESS_REFUSED, f"{host}: not a canonical numeric address")
    if isinstance(cause, TimeoutError):
        return TransientFailure(ErrorCode.TIMEOUT, f"{host}: no connection or no answer in time")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        if isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_AGAIN:
            return TransientFailure(ErrorCode.DNS_FAILED, f"{host}: {_reason(cause)}")
        return ItemFailure(ErrorCode.DNS_FAILED, f"{host}: {_reason(cause)}")
    if isinstance(error, aiohttp.ClientSSLError):
        return ItemFailure(ErrorCode.TLS_FAILED, f"{host}: {_reason(cause)}")
    if isinstance(error, aiohttp.ClientResponseError):
        if "chunk" in error.message.partition(":")[0]:
            # Head and broken body came in one piece; for two, aiohttp reports the body, and so does this.
            return ItemFailure(ErrorCode.INCOMPLETE_BODY, f"{host}: the chunked body is broken")
        return ItemFailure(ErrorCode.HTTP_ERROR, f"{host}: the answer is not HTTP, or its header is too long")
    if isinstance(error, ValueError):
        return ItemFailure(ErrorCode.BAD_URI, f"{host}: not a URL that can be requested")
    return TransientFailure(ErrorCode.CONNECT_FAILED, f"{host}: {_reason(cause)}")


def _is_flood(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, FloodError):
        error = error.__cause__
    return error is not None


def _reason(error: Exception) -> str:
    """The reason, without the URL that aiohttp's own messages repeat."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError):
        return error.reason or "TLS failed"
    if isinstance(error, socket.gaierror):
        return error.strerror or "no such name"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return (
        "closed the connection before it answered" if isinstance(error, aiohttp.ClientError) else str(error)
    )
