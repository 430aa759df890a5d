"""What is answered to requests that name no policy, or one that is not there."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus

from clipfleet_gateway.errors import INVALID, MODEL_NOT_FOUND, ApiError, invalid

POLICY_MISSING = "missing_model"  # code of the error
_ADD = "the operator adds one with `clipfleet-gateway policies add FILE`"


def no_such_policy(model: str, known: Iterable[str]) -> ApiError:
    """No policy has this name, or no single version of it these digits."""
    others = ", ".join(sorted(known))
    there = f"there is {others}" if others else f"there is none: {_ADD}"
    return ApiError(
        HTTPStatus.NOT_FOUND, f"There is no policy {model!r}; {there}", INVALID, "model", MODEL_NOT_FOUND
    )


def no_policy_named(known: Iterable[str]) -> ApiError:
    """A request names no policy, and it is not clear which one it means."""
    others = ", ".join(sorted(known))
    if others:
        return invalid(f"model: name a policy: one of {others}", "model", POLICY_MISSING)
    return invalid(f"model: there is no policy yet: {_ADD}", "model", POLICY_MISSING)
