"""Which fetcher an item belongs to: one for each scheme, and nothing for all others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import TypeAlias

from clipfleet.contract import ErrorCode
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.fetch import AsyncFetcher, scheme_of

Fetch: TypeAlias = Callable[[str], Awaitable[bytes]]  # called in the event loop
Read: TypeAlias = Callable[
    [str], bytes
]  # of what is near at hand: called in decode threads, by several at once


class Routes:
    """All fetchers of a worker; an `AsyncFetcher` itself.

    Args:
        remote: by scheme, in lower case.
        local: likewise; `file` also stands for absolute paths.
        fetchers: what the remote ones belong to, started and closed with this.
    """

    def __init__(
        self, remote: Mapping[str, Fetch], local: Mapping[str, Read], fetchers: Sequence[AsyncFetcher] = ()
    ) -> None:
        self._remote = remote
        self._local = local
        self._fetchers = fetchers
        self._open = AsyncExitStack()

    async def start(self) -> None:
        """Start all of them; if one cannot, those before it are closed."""
        async with AsyncExitStack() as stack:
            for one in self._fetchers:
                stack.push_async_callback(one.close)
                await one.start()
            self._open = stack.pop_all()

    async def close(self) -> None:
        """Close all of them, also where one fails to."""
        await self._open.aclose()

    async def fetch(self, uri: str) -> bytes:
        """See `AsyncFetcher`; of a URI that is not local."""
        return await self._remote[scheme_of(uri)](uri)

    def read(self, uri: str) -> bytes:
        """The bytes behind a local URI; raises what `AsyncFetcher.fetch` raises."""
        return self._local[scheme_of(uri)](uri)

    def is_local(self, uri: str) -> bool:
        """Whether the item is read where it is decoded.

        Raises:
            ItemFailure: `bad_uri` without a scheme (a relative path has no meaning on another machine),
                `scheme_refused` for a scheme that is not served.
        """
        scheme = scheme_of(uri)
        if scheme in self._local:
            return True
        if scheme in self._remote:
            return False
        if not scheme:
            raise ItemFailure(ErrorCode.BAD_URI, "neither a URL nor an absolute path")
        served = ", ".join(sorted({*self._local, *self._remote}))
        raise ItemFailure(
            ErrorCode.SCHEME_REFUSED, f"scheme {scheme[:20]!r} is none of those served: {served}"
        )
