"""Keys by the tokens of requests. What the place is asked for does not grow with what clients send."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection
from functools import partial

from clipfleet_gateway.keys.key import Key, split_token
from clipfleet_gateway.looks import Look

_PLACE = "The gateway's place"
_KEPT_SECONDS = 5.0  # after it is revoked, a key opens for so long at most
_MOST_KEPT = 1000
_LIST_SECONDS = 0.5  # between two lists of names, so that guessed names cost no more than these


class KnownKeys:
    """Keys that requests have shown, each read once in a few seconds. For one event loop."""

    def __init__(
        self,
        find: Callable[[str], Awaitable[Key | None]],
        names: Callable[[], Awaitable[Collection[str]]],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`find` and `names` are those of `KeyRing`, whose exceptions all calls raise."""
        self._find = find
        self._names = _Names(names)
        self._monotonic = monotonic
        self._looks: OrderedDict[str, Look[Key | None]] = OrderedDict()  # by name, of keys that exist

    async def of_token(self, token: str) -> Key | None:
        """The key that a client has sent; None if it opens nothing.

        Raises:
            ApiError: the place does not answer (503).
        """
        split = split_token(token)
        if split is None:
            return None
        name, secret = split
        look = self._looks.get(name)
        if look is None:
            if not await self._names.has(name):
                return None
            look = self._looks.setdefault(name, self._look(name))
            if len(self._looks) > _MOST_KEPT:
                self._looks.popitem(last=False)
        else:
            self._looks.move_to_end(name)
        key = await look.found()
        return key if key is not None and key.opens_with(secret) else None

    def _look(self, name: str) -> Look[Key | None]:
        find = partial(self._find, name)
        return Look(find, _PLACE, kept_seconds=_KEPT_SECONDS, monotonic=self._monotonic)


class _Names:
    """Names of keys. They are never removed, so a list is needed for a name that is in no earlier one."""

    def __init__(self, names: Callable[[], Awaitable[Collection[str]]]) -> None:
        self._find = names
        self._known: frozenset[str] = frozenset()
        self._next: Look[None] | None = None  # a list that has not begun, for all who wait for one
        self._listing = asyncio.Lock()
        self._began_at: float | None = None

    async def has(self, name: str) -> bool:
        """Whether there is a key of this name, even if it was made a moment ago."""
        if name not in self._known:
            if self._next is None:
                self._next = Look(self._list, _PLACE)
            await self._next.found()
        return name in self._known

    async def _list(self) -> None:
        async with self._listing:
            now = asyncio.get_running_loop().time()
            if self._began_at is not None:
                await asyncio.sleep(self._began_at + _LIST_SECONDS - now)
            self._next = None  # a key that is made from now on may be missing in this list
            self._began_at = asyncio.get_running_loop().time()
            self._known = frozenset(await self._find())
