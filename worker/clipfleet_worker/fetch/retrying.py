"""Asks again for what failed for a passing reason, inside the chunk's time and without a turn at any host.

A host that is away for ten seconds must not cost rows, and one that is gone must not hold up its chunk: both
bounds are in the policy. What will not get better by waiting is not asked for twice.
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
    """What is left of the time for fetching a chunk; it may stand still."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and when an item is asked for again.

    Jitter is spread over the upper half of each delay. Over all of it the attempts might be used up within a
    moment, and a short outage would cost rows.
    """

    attempts: int = 5  # in all
    slow_attempts: int = 2  # where the first one may have cost its whole time, most of the bytes, or a thread
    first_delay_seconds: float = 1.5  # doubles each time
    max_delay_seconds: float = 12.0
    max_retry_after_seconds: float = 60.0  # a host that asks for more is not waited for
    # No attempt begins later than this after the first one, unless the host has named the time.
    persistence_seconds: float = 30.0
    # So long an item waits for a host that has been left alone for long. A young outage is waited out.
    old_outage_seconds: float = 8.0

    def delay_seconds(self, failure: TransientFailure, asked: int, chance: float) -> float | None:
        """How long to wait after the `asked`-th attempt; None: it was the last.

        Args:
            failure: how the attempt ended.
            asked: attempts so far, at least 1.
            chance: from 0 to 1, of the jitter.
        """
        code, told = failure.error.code, failure.retry_after_seconds
        if asked >= (min(self.slow_attempts, self.attempts) if code in _SLOW else self.attempts):
            return None
        if told is not None and told > self.max_retry_after_seconds:
            return None
        delay: float = min(self.max_delay_seconds, self.first_delay_seconds * 2 ** (asked - 1))
        return max(told or 0.0, delay * (1 + chance) / 2)


@dataclass(frozen=True, slots=True)
class RetryingFetcher:
    """Asks an `AsyncFetcher` as often as it is worth it."""

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
        """The bytes behind the URI, asked for as often as the policy and the chunk's time allow.

        It gives up rather than wait for longer than the chunk has time.

        Raises:
            ItemFailure: as the item's own last attempt ended; where it never had one, as its host's did.
            SourceUnavailableError: see `AsyncFetcher`.
        """
        began = self.monotonic()
        refused_at: float | None = None  # for the first time
        asked = 0
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
                if refusal.is_old:  # whoever has asked himself need not ask again
                    ends = refused_at + self.policy.old_outage_seconds if own is None else -math.inf
                delay = self._spread(refusal.wait_seconds)
            except TransientFailure as transient:
                asked += 1
                failure = own = transient
                if transient.retry_after_seconds is None:
                    ends = began + self.policy.persistence_seconds
                delay = self.policy.delay_seconds(transient, asked, self.chance())
            if delay is None or self.monotonic() + delay > ends or delay >= time_left.seconds:
                raise _told(failure, asked)
            await self.sleep(delay)

    def _spread(self, wait_seconds: float) -> float:
        """All items of a host wait for the same moment: they shall not come back in one rush."""
        return wait_seconds + self.chance() * self.policy.first_delay_seconds


def _told(failure: ItemFailure, asked: int) -> ItemFailure:
    if asked < 2:
        return failure
    return ItemFailure(failure.error.code, f"{failure.error.detail} (asked {asked} times)")
