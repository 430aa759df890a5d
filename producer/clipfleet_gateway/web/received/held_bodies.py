"""The memory of all bodies that are read: each key has a share, and small bodies wait for no large ones."""

from __future__ import annotations

import asyncio
from collections import Counter
from weakref import WeakValueDictionary

from aiohttp import web

from clipfleet_gateway.errors import limited, unavailable
from clipfleet_gateway.web.received.body_guard import body_too_large

_MOST_BYTES = 256 << 20  # of the large bodies of all keys
_SHARE_BYTES = 64 << 20  # of those of a key: one of the largest; and of its small ones
_SMALL_BYTES = 1 << 20


class HeldBodies:
    """Counts what has arrived of the bodies that are read. For one event loop."""

    def __init__(self) -> None:
        self._small: Counter[str] = Counter()  # bytes, by key
        self._large: Counter[str] = Counter()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def turn(self, owner: str) -> asyncio.Lock:
        """Held while a body of a key takes many times its size: one at a time."""
        return self._turns.setdefault(owner, asyncio.Lock())

    def begin(self, owner: str) -> HeldBody:
        """A body of a key that arrives."""
        return HeldBody(self._small, self._large, owner)


class HeldBody:
    """One body; to be closed once nothing of it is kept."""

    def __init__(self, small: Counter[str], large: Counter[str], owner: str) -> None:
        self._small, self._large, self._owner = small, large, owner
        self._in = small
        self._pieces: list[bytes] = []
        self._bytes = 0

    async def read(self, request: web.Request, most_bytes: int) -> bytes:
        """All of the body.

        Raises:
            ApiError: it is too large (413), or too much of the key (429) or of all keys (503) is held.
        """
        if (request.content_length or 0) > most_bytes:
            raise body_too_large(most_bytes)
        while piece := await request.content.readany():
            if self._bytes + len(piece) > most_bytes:
                raise body_too_large(most_bytes)
            self._add(piece)
        data = b"".join(self._pieces)
        self._pieces.clear()
        return data

    def _add(self, piece: bytes) -> None:
        after = self._bytes + len(piece)
        if after > _SMALL_BYTES and self._in is self._small:
            self._count(-self._bytes)
            self._in = self._large
            self._count(self._bytes)
        if self._in[self._owner] + len(piece) > _SHARE_BYTES:
            raise limited("This key sends too many bodies at a time: try again", 1, "overloaded")
        if self._in is self._large and self._large.total() + len(piece) > _MOST_BYTES:
            raise unavailable("This gateway reads too many large bodies: try again", 1)
        self._count(len(piece))
        self._bytes = after
        self._pieces.append(piece)

    def _count(self, size_bytes: int) -> None:
        self._in[self._owner] += size_bytes
        if not self._in[self._owner]:
            del self._in[self._owner]

    def close(self) -> None:
        """Count it no more. Idempotent."""
        self._count(-self._bytes)
        self._bytes = 0
        self._pieces.clear()


HELD = web.AppKey("held", HeldBodies)
