"""Policies by the names in requests. A change in the place counts within five seconds."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection
from functools import partial

from clipfleet_gateway.looks import Look
from clipfleet_gateway.policies.errors import no_policy_named, no_such_policy
from clipfleet_gateway.policies.shelf import split_model
from clipfleet_gateway.policies.stored import StoredPolicy, Versions

_PLACE = "The gateway's place"
_KEPT_SECONDS = 5.0
_MOST_KEPT = 64  # policies that are held in memory


class KnownPolicies:
    """What requests ask for, each looked up once in a few seconds. For one event loop.

    `names`, `versions` and `load` are those of `PolicyShelf`. Every call raises their exceptions, and
    `ApiError` (503) if the place does not answer.
    """

    def __init__(
        self,
        names: Callable[[], Awaitable[Collection[str]]],
        versions: Callable[[str], Awaitable[Versions | None]],
        load: Callable[[str, str], Awaitable[StoredPolicy]],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._versions = versions
        self._load = load
        self._look = partial(Look, where=_PLACE, kept_seconds=_KEPT_SECONDS, monotonic=monotonic)
        self._names: Look[Collection[str]] = self._look(names)
        self._by_name: dict[str, Look[Versions | None]] = {}  # of names that there are
        self._loaded: OrderedDict[tuple[str, str], Look[StoredPolicy]] = OrderedDict()
        self.names = self._names.found

    async def require(self, model: str | None) -> StoredPolicy:
        """The policy that a request names; without a name the only one.

        Raises:
            ApiError: there is none (404), or several or none without a name (400).
        """
        names = await self.names()
        if model is None:
            if len(names) != 1:
                raise no_policy_named(names)
            (model,) = names
        name, digits = split_model(model)
        self._by_name = {one: look for one, look in self._by_name.items() if one in names}
        if name not in names:
            raise no_such_policy(model, names)
        if name not in self._by_name:
            self._by_name[name] = self._look(partial(self._versions, name))
        versions = await self._by_name[name].found()
        sha256 = versions.of_digits(digits) if versions is not None else None
        if sha256 is None:
            raise no_such_policy(model, names)
        return await self._policy(name, sha256)

    async def _policy(self, name: str, sha256: str) -> StoredPolicy:
        key = name, sha256
        look = self._loaded.get(key)
        if look is None:
            # Policies never change, so what was found is kept for good
            find = partial(self._load, name, sha256)
            look = self._loaded[key] = Look(find, _PLACE, kept_seconds=float("inf"))
            if len(self._loaded) > _MOST_KEPT:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(key)
        return await look.found()
