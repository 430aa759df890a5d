"""3. From an item's URI to its bytes, one module per kind of place. Does not look into the bytes.

A fetcher trusts neither the URI nor the place nor the bytes: settings say what may be reached; time, bytes
and redirects are capped. Whatever the other side does, the result is bytes or an `ItemFailure`. An HTML page
and an empty file are bytes like any others, which the decoder refuses.
"""

from __future__ import annotations

import re
from typing import Protocol

from clipfleet.contract.jobs import ErrorCode
from clipfleet.contract.tar_member import TarMember, tar_member
from clipfleet_worker.failures import ItemFailure

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
            UnchangedError: see `conditions`.
            TransientFailure: the fetch failed, but a retry may succeed.
            SourceUnavailableError: the store of all such items is down: their chunks wait for it.
            WorkerShortageError: the worker lacks file descriptors, threads or memory: its chunk waits.
            ItemFailure: the fetch failed; nothing else is raised for whatever a URI or a server can do.
        """


def scheme_of(uri: str) -> str:
    """Scheme in lower case: `https` of a URL, `file` for an absolute path, empty where there is none."""
    if uri.startswith("/"):
        return "file"
    match = _SCHEME.match(uri)
    return match[1].lower() if match else ""


def archive_member(uri: str) -> TarMember:
    """The archive that a URI names, and the range of bytes in it.

    Raises:
        ItemFailure: `bad_uri`.
    """
    try:
        return tar_member(uri)
    except ValueError as error:
        raise ItemFailure(ErrorCode.BAD_URI, str(error)) from error
