"""What a failed row says to the one who asked: 400 if the input is at fault, 503 if we are."""

from __future__ import annotations

from clipfleet.contract.jobs import ErrorCode, ItemError
from clipfleet_gateway.errors import ApiError, invalid, unavailable, words_of_failure

_OURS = frozenset(
    {
        ErrorCode.OUT_OF_MEMORY, ErrorCode.MODEL_UNAVAILABLE, ErrorCode.OUTPUT_UNREACHABLE,
        ErrorCode.OUTPUT_CONFLICT, ErrorCode.CHUNK_FAILED,
    }
)  # fmt: skip


def failure(error: ItemError, param: str) -> ApiError:
    """The error of an input. That of a URL which does not answer is the caller's, too: it names the URL."""
    if error.code in _OURS:
        return unavailable(f"{param} could not be done ({error.code}): try again")
    return invalid(words_of_failure(param, error.code, error.detail), param, error.code.value)
