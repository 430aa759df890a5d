"""Wait for a condition, never for an amount of time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

_POLL_SECONDS = 0.02

Found = TypeVar("Found")


def wait_until(predicate: Callable[[], Found], description: str, seconds: float = 60.0) -> Found:
    """Poll until the answer is truthy, and return it.

    Args:
        predicate: called at least once; its exceptions are not caught.
        description: what is waited for, for the failure's message: "the job is completed".
        seconds: after this long the test fails.
    """
    deadline = time.monotonic() + seconds
    while True:
        answer = predicate()
        if answer:
            return answer
        if time.monotonic() >= deadline:
            raise AssertionError(f"still not after {seconds:g} s: {description} (last answer: {answer!r})")
        time.sleep(_POLL_SECONDS)
