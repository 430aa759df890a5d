"""A look at Redis or the gateway's place that many requests need: one at a time, and all share its result."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from clipfleet_gateway.errors import unavailable

T = TypeVar("T")
KEPT_SECONDS = 2.0  # a failure too: else each request would wait for a Redis that hangs, one after the other
_MOST_SECONDS = 10.0  # that a request waits; the look continues, and later requests share it


class Look(Generic[T]):
    """What was found last, or why nothing was, for a few seconds. For one event loop."""

    def __init__(
        self,
        find: Callable[[], Awaitable[T]],
        where: str,
        *,
        kept_seconds: float = KEPT_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`where` names what is looked at, for the error of a look that does not end."""
        self._find = find
        self._where = where
        self._kept_seconds = kept_seconds
        self._monotonic = monotonic
        self._task: asyncio.Task[T] | None = None
        self._fresh_until = 0.0

    async def found(self, most_seconds: float = _MOST_SECONDS) -> T:
        """The result, which may be some seconds old.

        Raises:
            ApiError: there is no answer within `most_seconds` (503).
            Exception: what the look has raised.
        """
        task = self._task
        if task is None or (task.done() and self._monotonic() >= self._fresh_until):
            task = self._task = asyncio.ensure_future(self._look())
            task.add_done_callback(_noticed)
        if not task.done():
            # Not wait_for: a caller that gives up, or hangs up, must not end the look of the others.
            await asyncio.wait([task], timeout=most_seconds)
        if not task.done():
            raise unavailable(f"{self._where} does not answer: try again")
        return task.result()

    async def _look(self) -> T:
        kept_seconds = KEPT_SECONDS
        try:
            result = await self._find()
            kept_seconds = self._kept_seconds
            return result
        finally:
            self._fresh_until = self._monotonic() + kept_seconds


def _noticed(task: asyncio.Task[T]) -> None:
    """No error of the log if all callers have hung up meanwhile."""
    if not task.cancelled():
        task.exception()
