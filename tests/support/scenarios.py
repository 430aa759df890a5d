"""Run coroutines as tests, with an upper bound."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import ParamSpec

P = ParamSpec("P")


def in_loop(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run an async test, which may have fixtures and parameters, in an event loop of its own."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def main() -> None:
            await asyncio.wait_for(test(*args, **kwargs), 60)

        asyncio.run(main())

    return run


async def settle() -> None:
    """Let tasks that wait for nothing outside run as far as they can."""
    for _ in range(10):
        await asyncio.sleep(0)
