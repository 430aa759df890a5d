"""Retries transient failures within the chunk's time, holding no turn at any host meanwhile.

A host that is down for ten seconds must not cost rows, and one that is gone must not delay its chunk: both
bounds are in the policy. Permanent failures are not retried.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from clipfleet.contract.jobs import ErrorCode
from clipfleet_worker.failures import HostLeftAlone, ItemFailure, TransientFailure
from clipfleet_worker.fetch import AsyncFetcher

_SLOW = frozenset({ErrorCode.TIMEOUT, ErrorCode.INCOMPLETE_BODY, ErrorCode.DNS_FAILED})


@dataclass(slots=True)
class ChunkTime:
    """Remaining time for fetching a chunk; the caller decides when it runs."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and when an item is retried.

    Jitter covers the upper half of each delay. If it covered the whole delay, the attempts might be used up
    at once, and a short outage would cost rows.
    """

    attempts: int = 5  # in all
    slow_attempts: int = 2  # for failures that may cost the whole time, most of the bytes, or a thread
    first_delay_seconds: float = 1.5  # doubles each time
    max_delay_seconds: float = 12.0
    max_retry_after_seconds: float = 60.0  # an item fails if its host asks for more
    # No attempt begins later than this after the first one, unless the host has named the time.
    persistence_seconds: float = 30.0
    # How long an item waits for a host in an old outage. Young outages are waited out.
    old_outage_seconds: float = 8.0

    def delay_seconds(self, failure: TransientFailure, attempts: int, chance: float) -> float | None:
        """How long to wait after an attempt; None if it was the last.

        Args:
            failure: how the attempt ended.
            attempts: so far, at least 1.
            chance: from 0 to 1, of the jitter.
        """
        code, retry_after = failure.error.code, failure.retry_after_seconds
        if attempts >= (min(self.slow_attempts, self.attempts) if code in _SLOW else self.attempts):
            return None
        if retry_after is not None and retry_after > self.max_retry_after_seconds:
            return None
        delay: float = min(self.max_delay_seconds, self.first_delay_seconds * 2 ** (attempts - 1))
        return max(retry_after or 0.0, delay * (1 + chance) / 2)


@dataclass(frozen=True, slots=True)
class RetryingFetcher:
    """An `AsyncFetcher` with retries."""

    fetcher: AsyncFetcher  # started and closed with this one
    policy: RetryPolicy
    monotonic: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random  # a number from 0 to 1
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def start(self) -> None:
        """Open the fetcher."""
        await self.fetcher.start()

    async def close(self) -> None:
        """Close the fetcher."""
        await self.fetcher.close()

    async def fetch(self, uri: str, time_left: ChunkTime) -> bytes:
        """The bytes behind the URI, retried within the policy and the chunk's time.

        It never waits for longer than the chunk has time.

        Raises:
            ItemFailure: that of the item's own last attempt or, without one, that of its host.
            SourceUnavailableError: see `AsyncFetcher`.
        """
        began = self.monotonic()
        refused_at: float | None = None  # for the first time
        attempts = 0
        own: TransientFailure | None = None
        while True:
            failure: ItemFailure
            delay: float | None
            ends = math.inf
            try:
                return await self.fetcher.fetch(uri)
            except HostLeftAlone as refusal:  # no attempt: nothing was sent
                failure = own or refusal
                refused_at = self.monotonic() if refused_at is None else refused_at
                if refusal.is_old:  # an item with an attempt of its own need not wait
                    ends = refused_at + self.policy.old_outage_seconds if own is None else -math.inf
                delay = self._spread(refusal.wait_seconds)
            except TransientFailure as transient:
                attempts += 1
                failure = own = transient
                if transient.retry_after_seconds is None:
                    ends = began + self.policy.persistence_seconds
                delay = self.policy.delay_seconds(transient, attempts, self.chance())
            if delay is None or self.monotonic() + delay > ends or delay >= time_left.seconds:
                raise _with_attempts(failure, attempts)
            await self.sleep(delay)

    def _spread(self, wait_seconds: float) -> float:
        """Add jitter: all items of a host wait for the same moment, and must not return in one rush."""
        return wait_seconds + self.chance() * self.policy.first_delay_seconds


def _with_attempts(failure: ItemFailure, attempts: int) -> ItemFailure:
    if attempts < 2:
        return failure
    return ItemFailure(failure.error.code, f"{failure.error.detail} ({attempts} attempts)")
