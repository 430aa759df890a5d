"""What a failed call of S3 means: its kind, one line for people, and whether waiting helps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from clipfleet.errors import ClipfleetError, OutputUnavailableError, OutputUnreachableError


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
