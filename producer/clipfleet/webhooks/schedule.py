"""When a delivery that failed is tried again, and when it is given up."""

from __future__ import annotations

import random
from collections.abc import Callable

HOUR_SECONDS = 3600.0
# After the first failed attempt, the second, and so on: dense at first, for a receiver that fails now and
# then or restarts, up to a day. The attempt after the last one, 2.6 days after the event, is the last.
DELAYS_SECONDS = (
    1.0, 5.0, 30.0, 120.0, 600.0, 1800.0, 2 * HOUR_SECONDS, 5 * HOUR_SECONDS, 10 * HOUR_SECONDS,
    20 * HOUR_SECONDS, 24 * HOUR_SECONDS,
)  # fmt: skip
MAX_ATTEMPTS = len(DELAYS_SECONDS) + 1
MAX_RETRY_AFTER_SECONDS = 24 * HOUR_SECONDS  # to which a receiver's `Retry-After` is honoured
TOO_MANY_REQUESTS = 429
THROTTLING_STATUSES = frozenset(
    {TOO_MANY_REQUESTS, 502, 503, 504}
)  # answers that hold for the whole endpoint
GONE_STATUS = 410  # disables the endpoint

_JITTER = 0.2  # of a delay, which is shortened by up to so much


def next_delay_seconds(
    attempts: int,
    retry_after_seconds: float | None = None,
    *,
    uniform: Callable[[float, float], float] = random.uniform,
) -> float | None:
    """Seconds from a failed attempt to the next one; None: it was the last.

    Args:
        attempts: that have failed, with this one.
        retry_after_seconds: as the receiver asked; at most a day of it counts.
        uniform: a random number between two others, so that deliveries of one outage spread.
    """
    if attempts >= MAX_ATTEMPTS:
        return None
    delay = DELAYS_SECONDS[max(attempts, 1) - 1] * uniform(1 - _JITTER, 1.0)
    return max(delay, min(retry_after_seconds or 0.0, MAX_RETRY_AFTER_SECONDS))
