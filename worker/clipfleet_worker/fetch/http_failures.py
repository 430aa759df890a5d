"""What went wrong with a request, as an `ItemFailure`: by the answer's status, or by aiohttp's exception.

Details name the host and repeat nothing else of the URL.
"""

from __future__ import annotations

import os
import socket
import ssl

import aiohttp

from clipfleet.contract import ErrorCode
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.fetch.address_guard import AddressRefusedError

_STATUS_CODES = {
    401: ErrorCode.ACCESS_DENIED,
    403: ErrorCode.ACCESS_DENIED,
    404: ErrorCode.NOT_FOUND,
    410: ErrorCode.NOT_FOUND,
    429: ErrorCode.RATE_LIMITED,
}


def failure_of_status(host: str, status: int) -> ItemFailure:
    """The failure behind an answer that is neither 200 nor a redirect."""
    default = ErrorCode.SERVER_ERROR if status >= 500 else ErrorCode.HTTP_ERROR
    return ItemFailure(_STATUS_CODES.get(status, default), f"{host}: HTTP status {status}")


def failure_before_answer(host: str, error: aiohttp.ClientError | OSError | ValueError) -> ItemFailure:
    """The failure of a request that had no answer that can be read."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, AddressRefusedError):
        return ItemFailure(ErrorCode.ADDRESS_REFUSED, f"{host}: {cause}")
    if isinstance(error, aiohttp.InvalidURL):
        # All that aiohttp still finds wrong: 127.1, 2130706433 and other disguises of an IPv4 address.
        return ItemFailure(ErrorCode.ADDRESS_REFUSED, f"{host}: not a canonical numeric address")
    if isinstance(cause, TimeoutError):
        return ItemFailure(ErrorCode.TIMEOUT, f"{host}: no connection or no answer in time")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return ItemFailure(ErrorCode.DNS_FAILED, f"{host}: {_reason(cause)}")
    if isinstance(error, aiohttp.ClientSSLError):
        return ItemFailure(ErrorCode.TLS_FAILED, f"{host}: {_reason(cause)}")
    if isinstance(error, aiohttp.ClientResponseError):
        if "chunk" in error.message.partition(":")[0]:
            # Head and broken body came in one piece; in two, aiohttp blames the body, and so do we.
            return ItemFailure(ErrorCode.INCOMPLETE_BODY, f"{host}: the chunked body is broken")
        return ItemFailure(ErrorCode.HTTP_ERROR, f"{host}: the answer is not HTTP, or its header is too long")
    if isinstance(error, ValueError):
        return ItemFailure(ErrorCode.BAD_URI, f"{host}: not a URL that can be asked for")
    return ItemFailure(ErrorCode.CONNECT_FAILED, f"{host}: {_reason(cause)}")


def _reason(error: Exception) -> str:
    """What went wrong, without the URL that aiohttp's own messages repeat."""
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
