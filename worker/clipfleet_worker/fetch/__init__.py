"""From the URI of an item to the bytes behind it, one module per kind of place.

A fetcher trusts neither the URI nor the place nor the bytes: settings say what may be reached; time, bytes
and redirects are capped. It ends in bytes or in an `ItemFailure`, whatever the other side does. Nothing
here looks into the bytes: an HTML page and an empty file are bytes like others, the decoder tells them
apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")


class AsyncFetcher(Protocol):
    """Gets bytes over the network; lives in one event loop from `start` to `close`."""

    async def start(self) -> None:
        """Open what lasts: sessions, pools."""

    async def close(self) -> None:
        """Close it all; idempotent."""

    async def fetch(self, uri: str) -> bytes:
        """The bytes behind the URI.

        Raises:
            TransientFailure: they cannot be had now; a moment later they may.
            SourceUnavailableError: the store that all such items are in is away: their chunks wait for it.
            WorkerShortageError: this worker lacks file descriptors, threads or memory: likewise.
            ItemFailure: they cannot be had; nothing else is raised for whatever a URI or a server can do.
        """


@dataclass(slots=True)
class ChunkTime:
    """What is left of the time for fetching a chunk; it may stand still."""

    seconds: float


class PatientFetcher(Protocol):
    """See `AsyncFetcher`; may ask more than once."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def fetch(self, uri: str, time_left: ChunkTime) -> bytes:
        """The bytes behind the URI; gives up rather than wait for longer than the chunk has time.

        Raises:
            ItemFailure: they cannot be had.
            SourceUnavailableError, WorkerShortageError: see `AsyncFetcher`.
        """


class BlockingFetcher(Protocol):
    """Gets bytes that are near at hand; called in decode threads, by several at once."""

    def read(self, uri: str) -> bytes:
        """The bytes behind the URI, see `AsyncFetcher.fetch`."""


def scheme_of(uri: str) -> str:
    """Scheme in lower case: `https` of a URL, `file` for an absolute path, empty where there is none."""
    if uri.startswith("/"):
        return "file"
    match = _SCHEME.match(uri)
    return match[1].lower() if match else ""
