"""What a failed call of S3 means for the item that wanted the object: its code, and whether to ask again.

boto3's exceptions and the store's own answers come to the same here, whoever asked.
"""

from __future__ import annotations

from collections.abc import Mapping

from botocore.exceptions import ClientError
from botocore.parsers import create_parser

from clipfleet.contract import ErrorCode
from clipfleet.errors import SourceUnavailableError
from clipfleet.s3 import SCHEME, S3Problem, explain
from clipfleet_worker.failures import ItemFailure, TransientFailure

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
# No object is to blame for these, and they pass: its chunk waits.
_OURS = (S3Problem.EXPIRED, S3Problem.CLOCK)
# By name, as botocore's own; first what says most.
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


def failure_of_call(bucket: str, error: Exception) -> ItemFailure | SourceUnavailableError:
    """The failure behind an exception that a call of boto3 ended with.

    Args:
        bucket: that was asked.
        error: one of `clipfleet.s3.failures_of_calls`.
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
    """A failure of this code; transient where asking again may help."""
    return (TransientFailure if code in _TRANSIENT else ItemFailure)(code, detail)


def refusal_of(status: int, headers: Mapping[str, str], body: bytes) -> ClientError:
    """What boto3 would have raised for an answer that is no success."""
    answer = {"status_code": status, "headers": headers, "body": body}
    return ClientError(create_parser("rest-xml").parse(answer, None), "GetObject")
