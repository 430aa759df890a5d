"""Which models workers serve, looked up at most once in two seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from clipfleet.ledger.values import WorkerFacts
from clipfleet_gateway.errors import invalid, model_not_found, unavailable

_KEPT_SECONDS = 2.0


class Served:
    """The models that workers serve, and served since the gateway started."""

    def __init__(
        self,
        find: Callable[[], Awaitable[list[WorkerFacts]]],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find = find
        self._monotonic = monotonic
        self._now: frozenset[str] = frozenset()
        self._seen_at: dict[str, float] = {}
        self._looked_at: float | None = None
        self._looking = asyncio.Lock()

    async def require(self, model: str) -> None:
        """Return if a worker serves this model, or has, or if there is no worker that could say so.

        Raises:
            ApiError: none does, nor has (404).
        """
        now = await self._models()
        if now and model not in now and model not in self._seen_at:
            raise model_not_found(model, now)

    async def only(self) -> str:
        """The model of a request that names none.

        Raises:
            ApiError: there is not exactly one.
        """
        now = await self._models()
        if len(now) == 1:
            return next(iter(now))
        if not now:
            raise unavailable("No worker serves a model now: try again")
        raise invalid(f"model: name one of {', '.join(sorted(now))}", "model")

    async def away_seconds(self, model: str) -> float | None:
        """For how long no worker has served this model; 0 if one does, None if none ever did."""
        if model in await self._models():
            return 0.0
        seen_at = self._seen_at.get(model)
        return None if seen_at is None else self._monotonic() - seen_at

    async def _models(self) -> frozenset[str]:
        if self._is_fresh():
            return self._now
        async with self._looking:
            if not self._is_fresh():
                workers = await self._find()
                self._looked_at = self._monotonic()
                self._now = frozenset(name for worker in workers for name in worker.models)
                self._seen_at.update(dict.fromkeys(self._now, self._looked_at))
            return self._now

    def _is_fresh(self) -> bool:
        return self._looked_at is not None and self._monotonic() - self._looked_at < _KEPT_SECONDS
