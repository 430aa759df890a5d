"""What a request is answered with if it cannot be done: OpenAI's error object, with the HTTP status."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from pydantic import BaseModel, ConfigDict, Field

from clipfleet.errors import SourceError, UsageError


class ErrorObject(BaseModel):
    """What is wrong. All four keys are always there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    message: str = Field(description="for people: what failed, on what, what to do")
    type: str = Field(
        description="`invalid_request_error`, `permission_error`, `rate_limit_error` or `server_error`"
    )
    param: str | None = Field(description="what of the request is wrong, such as `input[3]`")
    code: str | None = Field(description="for programs, such as `not_found`")


class ErrorBody(BaseModel):
    """A request that is refused, or cannot be served now."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    error: ErrorObject


@dataclass(eq=False)
class ApiError(Exception):
    """A request that is refused, or cannot be served now.

    The official clients retry 408, 409, 429 and 500 and above by themselves, and no other status.
    """

    status: HTTPStatus
    message: str
    kind: str  # `type` of the error object
    param: str | None = None  # what of the request is wrong, such as `input[3]`
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.message)

    def body(self) -> ErrorBody:
        """The body of the answer."""
        error = ErrorObject(message=self.message, type=self.kind, param=self.param, code=self.code)
        return ErrorBody(error=error)


# For clients, where the true reason may hold paths and addresses of the operator.
NOT_SUBMITTED = "It cannot be submitted: the operator finds the reason in the log of the gateway"
NOT_RUN = "The workers could not run all of it: the operator finds the reason with `clipfleet status`"
WAITS = "It waits: the operator finds the reason with `clipfleet status`"


def why_not_submitted(error: Exception) -> str:
    """What clients read of an error of a submit: what is wrong with their own request and source."""
    is_theirs = isinstance(error, SourceError) or type(error) is UsageError
    return str(error) if is_theirs or not isinstance(error, UsageError) else NOT_SUBMITTED


INVALID, DENIED, LIMITED, FAILED = (
    "invalid_request_error",
    "permission_error",
    "rate_limit_error",
    "server_error",
)


def invalid(
    message: str, param: str | None = None, code: str | None = None, *, status: HTTPStatus | None = None
) -> ApiError:
    """The request is wrong: the same one will be refused again."""
    return ApiError(status or HTTPStatus.BAD_REQUEST, message, INVALID, param, code)


def not_found(what: str, name: str, param: str | None = None) -> ApiError:
    """There is no such object, or it is that of another key: the answer is the same."""
    return ApiError(HTTPStatus.NOT_FOUND, f"No such {what}: {name!r}", INVALID, param, "not_found")


MODEL_NOT_FOUND = "model_not_found"  # code of an error


def model_not_found(name: str, served: Iterable[str]) -> ApiError:
    """No worker serves this model, nor has."""
    others = ", ".join(sorted(served)) or "none"
    return ApiError(
        HTTPStatus.NOT_FOUND, f"No worker serves the model {name!r}; served: {others}", INVALID, "model",
        MODEL_NOT_FOUND,
    )  # fmt: skip


def unauthorized(message: str) -> ApiError:
    """No key, or none that is known."""
    challenge = {"WWW-Authenticate": 'Bearer realm="clipfleet"'}
    return ApiError(HTTPStatus.UNAUTHORIZED, message, INVALID, code="invalid_api_key", headers=challenge)


def words_of_failure(param: str, code: str, detail: str) -> str:
    """What is wrong with an input whose row has failed: `input[3]: not an image: a text`."""
    return f"{param}: {code.replace('_', ' ')}{detail and f': {detail}'}"


def denied(message: str, param: str | None = None) -> ApiError:
    """The key must not do this."""
    return ApiError(HTTPStatus.FORBIDDEN, message, DENIED, param, "not_allowed")


def limited(message: str, retry_after_seconds: float, code: str = "rate_limit_exceeded") -> ApiError:
    """Too much at once: the same request will do later."""
    seconds = max(1, round(retry_after_seconds))
    return ApiError(
        HTTPStatus.TOO_MANY_REQUESTS, message, LIMITED, code=code, headers={"Retry-After": str(seconds)}
    )


def unavailable(message: str, retry_after_seconds: int = 5) -> ApiError:
    """Redis, the gateway's place or all workers are away: the same request will do later."""
    return ApiError(
        HTTPStatus.SERVICE_UNAVAILABLE, message, FAILED, code="unavailable",
        headers={"Retry-After": str(retry_after_seconds)},
    )  # fmt: skip
