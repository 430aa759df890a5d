"""Whether the gateway is up, and whether it can serve; which models there are."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from clipfleet.errors import ClipfleetError
from clipfleet.ledger.values import WorkerFacts
from clipfleet_gateway.errors import not_found
from clipfleet_gateway.services import Services
from clipfleet_gateway.web.answers import answer

_PROBE = "keys/"


class HealthRoutes:
    """`/healthz`, `/readyz` and `/v1/models`."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_get("/healthz", self._healthz)
        router.add_get("/readyz", self._readyz)
        router.add_get("/v1/models", self._models)
        router.add_get("/v1/models/{model:.+}", self._model)

    async def _healthz(self, _: web.Request) -> web.Response:
        return answer({"status": "ok"})

    async def _readyz(self, _: web.Request) -> web.Response:
        """Ready with Redis and the place; without workers requests wait, so they do not count."""
        found = {"redis": await self._trouble(self._services.client.workers)}
        found["place"] = await self._trouble(lambda: [*self._services.place.names(_PROBE)])
        is_ready = not any(found.values())
        words = {name: trouble or "ok" for name, trouble in found.items()}
        return answer({"status": "ok" if is_ready else "unavailable", **words}, 200 if is_ready else 503)

    async def _trouble(self, look: Any) -> str | None:
        try:
            await self._services.call(look)
        except ClipfleetError as error:
            return type(error).__name__
        return None

    async def _models(self, _: web.Request) -> web.Response:
        workers = await self._services.call(self._services.client.workers)
        return answer({"object": "list", "data": _described(workers)})

    async def _model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        workers = await self._services.call(self._services.client.workers)
        for model in _described(workers):
            if model["id"] == name:
                return answer(model)
        raise not_found("model", name, "model")


def _described(workers: list[WorkerFacts]) -> list[dict[str, Any]]:
    """The models of the workers that are there, by name. None of them says when it was made."""
    names = sorted({name for worker in workers for name in worker.models})
    return [{"id": name, "object": "model", "created": 0, "owned_by": "clipfleet"} for name in names]
