"""Chooses the fetcher of an item by its scheme; reads `data:` URIs, which need none."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import TypeAlias
from urllib.parse import unquote_to_bytes

from clipfleet.contract.jobs import ErrorCode
from clipfleet_worker.failures import ItemFailure, too_many_bytes
from clipfleet_worker.fetch import AsyncFetcher, scheme_of

Fetch: TypeAlias = Callable[[str], Awaitable[bytes]]  # called in the event loop
Read: TypeAlias = Callable[[str], bytes]  # of local items; called by several decode threads at once

_BLANKS = re.compile(rb"\s+")
_FROM_URL_ALPHABET = bytes.maketrans(b"-_", b"+/")


class Routes:
    """All fetchers of a worker; an `AsyncFetcher` itself.

    Args:
        remote: by scheme, in lower case.
        local: by scheme, in lower case; `file` also stands for absolute paths.
        fetchers: those of the remote schemes, started and closed with this object.
    """

    def __init__(
        self, remote: Mapping[str, Fetch], local: Mapping[str, Read], fetchers: Sequence[AsyncFetcher] = ()
    ) -> None:
        self._remote = remote
        self._local = local
        self._fetchers = fetchers
        self._open = AsyncExitStack()

    async def start(self) -> None:
        """Start all fetchers; if one fails to start, those before it are closed."""
        async with AsyncExitStack() as stack:
            for one in self._fetchers:
                stack.push_async_callback(one.close)
                await one.start()
            self._open = stack.pop_all()

    async def close(self) -> None:
        """Close all fetchers, even if one fails to close."""
        await self._open.aclose()

    async def fetch(self, uri: str) -> bytes:
        """The bytes behind a remote URI, from the fetcher of its scheme; see `AsyncFetcher`."""
        return await self._remote[scheme_of(uri)](uri)

    def read(self, uri: str) -> bytes:
        """The bytes behind a local URI; raises what `AsyncFetcher.fetch` raises."""
        return self._local[scheme_of(uri)](uri)

    def is_local(self, uri: str) -> bool:
        """Whether the item is read where it is decoded.

        Raises:
            ItemFailure: `bad_uri` without a scheme (a relative path means nothing on another machine),
                `scheme_refused` for an unsupported scheme.
        """
        scheme = scheme_of(uri)
        if scheme in self._local:
            return True
        if scheme in self._remote:
            return False
        if not scheme:
            raise ItemFailure(ErrorCode.BAD_URI, "neither a URL nor an absolute path")
        *others, last = sorted(self._remote) + sorted(self._local)
        served = f"{', '.join(others)} or {last}"
        raise ItemFailure(ErrorCode.SCHEME_REFUSED, f"unsupported URL scheme {scheme[:20]!r}; use {served}")


def read_data_uri(uri: str, max_image_bytes: int) -> bytes:
    """The bytes of an image in its URI (RFC 2397); its media type is ignored.

    As in a browser, base64 may lack padding and contain blanks.

    Raises:
        ItemFailure: `bad_uri` or `too_many_bytes`.
    """
    head, comma, content = uri.partition(",")
    if not comma:
        raise ItemFailure(ErrorCode.BAD_URI, "a data URI without the comma before its content")
    data = unquote_to_bytes(content)
    if head.rstrip().lower().endswith(";base64"):
        data = _from_base64(data)
    if len(data) > max_image_bytes:
        raise too_many_bytes(max_image_bytes)
    return data


def _from_base64(text: bytes) -> bytes:
    packed = _BLANKS.sub(b"", text).translate(_FROM_URL_ALPHABET).rstrip(b"=")
    try:
        return base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except binascii.Error as error:
        raise ItemFailure(ErrorCode.BAD_URI, f"a data URI that is not base64: {error}") from error
