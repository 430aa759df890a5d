"""Which fetcher an item belongs to: one for each scheme, and nothing for all others."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass

from clipfleet.contract import ErrorCode
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.fetch import AsyncFetcher, BlockingFetcher, scheme_of


class RemoteFetchers:
    """One `AsyncFetcher` out of several, chosen by the scheme of a URI.

    Args:
        by_scheme: in lower case; one fetcher may serve several schemes.
    """

    def __init__(self, by_scheme: Mapping[str, AsyncFetcher]) -> None:
        self._by_scheme = dict(by_scheme)
        self.schemes = frozenset(by_scheme)  # what is served
        self._open = AsyncExitStack()

    async def start(self) -> None:
        """Start all of them; if one cannot, those before it are closed."""
        async with AsyncExitStack() as stack:
            for fetcher in dict.fromkeys(self._by_scheme.values()):
                stack.push_async_callback(fetcher.close)
                await fetcher.start()
            self._open = stack.pop_all()

    async def close(self) -> None:
        """Close all of them, also where one fails to."""
        await self._open.aclose()

    async def fetch(self, uri: str) -> bytes:
        """See `AsyncFetcher`; the scheme must be a served one."""
        return await self._by_scheme[scheme_of(uri)].fetch(uri)


class LocalFetchers:
    """One `BlockingFetcher` out of several, chosen by the scheme of a URI.

    Args:
        by_scheme: in lower case; `file` also stands for absolute paths.
    """

    def __init__(self, by_scheme: Mapping[str, BlockingFetcher]) -> None:
        self._by_scheme = dict(by_scheme)
        self.schemes = frozenset(by_scheme)  # what is served

    def read(self, uri: str) -> bytes:
        """See `BlockingFetcher`; the scheme must be a served one."""
        return self._by_scheme[scheme_of(uri)].read(uri)


@dataclass(frozen=True, slots=True)
class Routes:
    """All fetchers of a worker."""

    remote: RemoteFetchers  # in the event loop
    local: LocalFetchers  # in the decode threads

    def is_local(self, uri: str) -> bool:
        """Whether the item is read where it is decoded.

        Raises:
            ItemFailure: `bad_uri` without a scheme (a relative path has no meaning on another machine),
                `scheme_refused` for a scheme that is not served.
        """
        scheme = scheme_of(uri)
        if scheme in self.local.schemes:
            return True
        if scheme in self.remote.schemes:
            return False
        if not scheme:
            raise ItemFailure(ErrorCode.BAD_URI, "neither a URL nor an absolute path")
        served = ", ".join(sorted(self.local.schemes | self.remote.schemes))
        raise ItemFailure(
            ErrorCode.SCHEME_REFUSED, f"scheme {scheme[:20]!r} is none of those served: {served}"
        )
