"""Which models workers serve, looked up at most once in two seconds."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from clipfleet.ledger.values import WorkerFacts
from clipfleet_gateway.errors import invalid, model_not_found, unavailable
from clipfleet_gateway.looks import Look


class ServedModels:
    """The models that workers serve, and have served.

    Every method raises `RedisUnavailableError`, or `ApiError` (503) if Redis does not answer.

    Args:
        find: workers that are up.
        has_served: whether a worker ever served a model; asked for one that this gateway has not seen.
        monotonic: a clock.
    """

    def __init__(
        self,
        find: Callable[[], Awaitable[list[WorkerFacts]]],
        has_served: Callable[[str], Awaitable[bool]],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find = find
        self._has_served = has_served
        self._monotonic = monotonic
        self._seen_at: dict[str, float] = {}
        self._look = Look(self._found, "Redis", monotonic=monotonic)
        self.models = self._look.found

    async def require(self, model: str) -> None:
        """Return if a worker serves this model, or has, or if there is no worker that could say so.

        Raises:
            ApiError: none does, nor has (404).
        """
        now = await self.models()
        if now and model not in now and model not in self._seen_at:
            if not await self._has_served(model):
                raise model_not_found(model, now)
            self._seen_at[model] = self._monotonic()  # it has been away for this long at least

    async def only(self) -> str:
        """The model of a request that names none.

        Raises:
            ApiError: there is not exactly one.
        """
        now = await self.models()
        if len(now) == 1:
            return next(iter(now))
        if not now:
            raise unavailable("No worker serves a model now: try again")
        raise invalid(f"model: name one of {', '.join(sorted(now))}", "model")

    async def away_seconds(self, model: str) -> float | None:
        """For how long no worker has served this model; 0 if one does, None if none ever did."""
        if model in await self.models():
            return 0.0
        seen_at = self._seen_at.get(model)
        return None if seen_at is None else self._monotonic() - seen_at

    async def _found(self) -> frozenset[str]:
        workers = await self._find()
        found = frozenset(name for worker in workers for name in worker.models)
        self._seen_at.update(dict.fromkeys(found, self._monotonic()))
        return found
