"""Fetchers of a worker as tests open them, with real servers on loopback."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

from clipfleet.contract.jobs import ErrorCode
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.fetch.http.address_guard import AddressGuard
from clipfleet_worker.fetch.http.fetcher import HttpLimits

LIMITS = HttpLimits(
    max_image_bytes=100_000,
    fetch_timeout_seconds=20,
    connect_timeout_seconds=20,
    idle_read_timeout_seconds=20,
    host_connections=8,
    total_connections=64,
)
LOOPBACK = AddressGuard((ipaddress.ip_network("127.0.0.0/8"),))


class Fetcher(Protocol):
    async def start(self) -> None: ...

    async def close(self) -> None: ...


F = TypeVar("F", bound=Fetcher)


@asynccontextmanager
async def opened(fetcher: F) -> AsyncIterator[F]:
    await fetcher.start()
    try:
        yield fetcher
    finally:
        await fetcher.close()


async def ends(fetch: Callable[[str], Awaitable[bytes]], uris: Iterable[str]) -> list[bytes | ItemFailure]:
    """What becomes of each, all at once."""

    async def end(uri: str) -> bytes | ItemFailure:
        try:
            return await fetch(uri)
        except ItemFailure as failure:
            return failure

    return await asyncio.gather(*map(end, uris))


def codes(found: Iterable[bytes | ItemFailure]) -> list[bytes | ErrorCode]:
    """The bytes, or the code of the failure."""
    return [one.error.code if isinstance(one, ItemFailure) else one for one in found]
