"""Coroutines as tests: run to their end, but not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await asyncio.wait_for(scenario(), 60)

    asyncio.run(main())


async def settle() -> None:
    """Until tasks that wait for nothing outside have got as far as they can."""
    for _ in range(10):
        await asyncio.sleep(0)
