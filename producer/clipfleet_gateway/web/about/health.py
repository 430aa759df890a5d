"""Whether the gateway is up, and whether it can serve; which models there are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aiohttp import web

from clipfleet.errors import ClipfleetError
from clipfleet.ledger.values import WorkerFacts
from clipfleet_gateway.errors import not_found
from clipfleet_gateway.services import Services
from clipfleet_gateway.shapes.health import Health, Readiness
from clipfleet_gateway.shapes.models import ModelList, ModelObject
from clipfleet_gateway.web.answers import answer
from clipfleet_gateway.web.operations import Operation, Served

_PROBE = "keys/"
_OK = "ok"
_HEALTHZ = Operation("GET", "/healthz", "getHealth", "Say that the process answers.", answers={200: Health})
_READYZ = Operation(
    "GET", "/readyz", "getReadiness", "Say whether Redis and the gateway's place can be reached.",
    answers={200: Readiness, 503: Readiness},
)  # fmt: skip
_MODELS = Operation(
    "GET", "/v1/models", "listModels", "List the models that workers serve now.", answers={200: ModelList}
)
_MODEL = Operation(
    "GET", "/v1/models/{model:.+}", "getModel", "Find a model that workers serve now.",
    answers={200: ModelObject}, path_parameters={"model": "its id"}, errors=(404,),
)  # fmt: skip


class HealthRoutes:
    """`/healthz`, `/readyz` and `/v1/models`."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def operations(self) -> Iterable[Served]:
        """The routes."""
        yield _HEALTHZ, self._healthz
        yield _READYZ, self._readyz
        yield _MODELS, self._models
        yield _MODEL, self._model

    async def _healthz(self, _: web.Request) -> web.Response:
        return answer(Health())

    async def _readyz(self, _: web.Request) -> web.Response:
        """Ready with Redis and the place; without workers requests wait, so they do not count."""
        redis = await self._trouble(self._services.client.workers)
        place = await self._trouble(lambda: [*self._services.place.names(_PROBE)])
        if redis or place:
            return answer(Readiness(status="unavailable", redis=redis or _OK, place=place or _OK), 503)
        return answer(Readiness(status="ok", redis=_OK, place=_OK))

    async def _trouble(self, look: Any) -> str | None:
        try:
            await self._services.call(look)
        except ClipfleetError as error:
            return type(error).__name__
        return None

    async def _models(self, _: web.Request) -> web.Response:
        workers = await self._services.call(self._services.client.workers)
        return answer(ModelList(data=_described(workers)))

    async def _model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        workers = await self._services.call(self._services.client.workers)
        for model in _described(workers):
            if model.id == name:
                return answer(model)
        raise not_found("model", name, "model")


def _described(workers: list[WorkerFacts]) -> list[ModelObject]:
    """The models of the workers that are there, by name."""
    names = sorted({name for worker in workers for name in worker.models})
    return [ModelObject(id=name) for name in names]
