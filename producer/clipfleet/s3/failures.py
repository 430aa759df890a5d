"""Classifies failed S3 calls: kind, one-line message, and whether waiting helps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from clipfleet.errors import ClipfleetError, OutputUnavailableError, OutputUnreachableError


class S3Problem(StrEnum):
    """Kinds of failure."""

    NO_OBJECT = "no_object"
    NO_BUCKET = "no_bucket"
    DENIED = "denied"
    NO_CREDENTIALS = "no_credentials"
    EXPIRED = "expired"  # expired credentials
    CLOCK = "clock"  # clock skew invalidates the signature
    MISCONFIGURED = "misconfigured"  # endpoint, profile or region
    REFUSED = "refused"  # any other permanent error
    THROTTLED = "throttled"
    AWAY = "away"  # no response, or a server error


_CREDENTIALS = (S3Problem.NO_CREDENTIALS, S3Problem.EXPIRED)


@dataclass(frozen=True, slots=True)
class S3Failure:
    """Why a call failed."""

    problem: S3Problem
    detail: str  # one line, with the way out if there is one

    @property
    def waiting_helps(self) -> bool:
        """Whether the same call may succeed later.

        Also true for missing or refused credentials: they may be renewed while the program runs, and the
        service that issues them may be down.
        """
        return self.problem in (*_CREDENTIALS, S3Problem.CLOCK, S3Problem.THROTTLED, S3Problem.AWAY)


@contextmanager
def s3_errors(
    where: str,
    *,
    away: type[ClipfleetError] = OutputUnavailableError,
    lasting: type[ClipfleetError] = OutputUnreachableError,
) -> Iterator[None]:
    """Turn exceptions of boto3 into `away` if waiting may help, else into `lasting`.

    Args:
        where: URI, the prefix of the message.
        away: raised if the store does not respond, or throttles.
        lasting: raised for everything else, missing objects included.
    """
    try:
        yield
    except failures_of_calls() as error:
        failure = explain(error)
        raise (away if failure.waiting_helps else lasting)(f"{where}: {failure.detail}") from error


def failures_of_calls() -> tuple[type[Exception], ...]:
    """Exception types of a failed boto3 call.

    Includes those of its libraries, which escape if an error body is truncated, and RecursionError, as boto3
    follows redirects of an endpoint without bound.
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    return BotoCoreError, ClientError, ResponseParserError, HTTPError, RecursionError


def explain(error: Exception) -> S3Failure:
    """Classify an exception of boto3."""
    from botocore.exceptions import ClientError

    if isinstance(error, ClientError):
        return _explain_answer(error.response)
    if _is_redirected(error):
        where = "is it https://, and the store's own address?"
        return S3Failure(S3Problem.MISCONFIGURED, f"the endpoint redirects; see AWS_ENDPOINT_URL: {where}")
    kind = _LOCAL_PROBLEMS.get(type(error).__name__, S3Problem.AWAY)
    if isinstance(error, ValueError) and kind is S3Problem.AWAY:  # botocore's error for a malformed endpoint
        kind = S3Problem.MISCONFIGURED
    text = " ".join(str(error).split()).rstrip(".")
    if type(error).__name__ in _NO_CONNECTION:
        text += "; is the store up, and AWS_ENDPOINT_URL right?"
    return S3Failure(kind, f"{text}{_WAYS_OUT.get(kind, '')}")


def _is_redirected(error: Exception) -> bool:
    """Whether botocore recursed: its region lookup of a bucket is redirected again."""
    return isinstance(error, RecursionError) or isinstance(
        getattr(error, "kwargs", {}).get("error"), RecursionError
    )


# By name, so that this table does not import botocore. All others are network failures.
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
    S3Problem.NO_BUCKET: "; create the bucket, or name another",
    S3Problem.DENIED: "; the credentials need GetObject, PutObject, DeleteObject, ListBucket",
    S3Problem.NO_CREDENTIALS: "; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    S3Problem.EXPIRED: "; renew the credentials: they are reloaded",
    S3Problem.CLOCK: "; set this machine's clock",
    S3Problem.MISCONFIGURED: "; see AWS_ENDPOINT_URL, AWS_PROFILE, AWS_REGION and AWS_CA_BUNDLE",
}


def _explain_answer(response: dict[str, Any]) -> S3Failure:
    """Classify an error response of the store."""
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    kind = _ANSWERS.get(code) or _problem_of_status(status)
    text = " ".join(str(response.get("Error", {}).get("Message") or "").split()).rstrip(".")
    said = text if code in ("", str(status)) or not text else f"{code}: {text}"
    return S3Failure(kind, f"the store answered {status} ({said or code}){_WAYS_OUT.get(kind, '')}")


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
