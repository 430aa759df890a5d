"""Run coroutines as tests, with an upper bound."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await asyncio.wait_for(scenario(), 60)

    asyncio.run(main())


async def settle() -> None:
    """Let tasks that wait for nothing outside run as far as they can."""
    for _ in range(10):
        await asyncio.sleep(0)
