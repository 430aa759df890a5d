"""Who asks: the key of a request, and how often."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from aiohttp import web

from clipfleet_gateway.errors import invalid, limited, unauthorized
from clipfleet_gateway.keys.key import Key

CALLER: web.RequestKey[Key] = web.RequestKey("caller", Key)

_MOST_KEPT = 1000
_SCHEME = "bearer "


class Callers:
    """Finds keys by their tokens, and counts their requests."""

    def __init__(
        self,
        find: Callable[[str], Awaitable[Key | None]],
        per_minute: int,
        at_once: int,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find = find
        self._monotonic = monotonic
        self._per_minute = per_minute
        self._at_once = at_once
        self._served: Counter[str] = Counter()  # requests of each key that are not answered yet, by name
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # by name: when, and requests then

    async def of(self, request: web.Request) -> Key:
        """The key of a request.

        Raises:
            ApiError: there is none, it opens nothing, or it has asked too often.
        """
        header = request.headers.getall("Authorization", [])
        if not header:
            raise unauthorized("Send a key: `Authorization: Bearer KEY`")
        if len(header) > 1:
            raise invalid("There is more than one Authorization header")
        if not header[0].lower().startswith(_SCHEME):
            raise unauthorized("The Authorization header must be `Bearer KEY`")
        key = await self._find(header[0][len(_SCHEME) :].strip())
        if key is None:
            raise unauthorized("This key is not known, or was revoked")
        self._count(key.name)
        return key

    @contextmanager
    def one_more(self, key: Key) -> Iterator[None]:
        """One more request of a key at a time. Raises `ApiError` if there are too many."""
        if self._served[key.name] >= self._at_once:
            raise limited(f"This key has {self._at_once:,} requests at a time", 1)
        self._served[key.name] += 1
        try:
            yield
        finally:
            self._served[key.name] -= 1
            if not self._served[key.name]:
                del self._served[key.name]

    def _count(self, name: str) -> None:
        """A bucket that fills evenly: bursts of a minute's worth are served."""
        now, per_second = self._monotonic(), self._per_minute / 60
        then, left = self._left.pop(name, (now, float(self._per_minute)))
        left = min(self._per_minute, left + (now - then) * per_second)
        self._left[name] = now, max(left - 1, 0.0)
        if len(self._left) > _MOST_KEPT:
            self._left.popitem(last=False)
        if left < 1:
            raise limited(f"This key may ask {self._per_minute:,} times in a minute", (1 - left) / per_second)
