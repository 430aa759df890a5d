"""Whether the gateway is up, and whether it can serve; which models there are."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from functools import partial

from aiohttp import web

from clipfleet.errors import ClipfleetError
from clipfleet_gateway.asking.served import ServedModels
from clipfleet_gateway.errors import ApiError, model_not_found
from clipfleet_gateway.looks import Look
from clipfleet_gateway.policies.known import KnownPolicies
from clipfleet_gateway.services import Services
from clipfleet_gateway.shapes.health import Health, Readiness
from clipfleet_gateway.shapes.models import POLICY, ModelList, ModelObject
from clipfleet_gateway.web.answers import answer
from clipfleet_gateway.web.operations import Operation, Served

_OK, _SILENT = "ok", "no answer"
PROBE_SECONDS = 3.0  # a probe gives up after five
_HEALTHZ = Operation("GET", "/healthz", "getHealth", "Say that the process answers.", answers={200: Health})
_READYZ = Operation(
    "GET", "/readyz", "getReadiness", "Say whether Redis and the gateway's place answer.",
    answers={200: Readiness, 503: Readiness},
)  # fmt: skip
_MODELS = Operation(
    "GET",
    "/v1/models",
    "listModels",
    "List the models that workers serve now, and the policies.",
    answers={200: ModelList},
)
_MODEL = Operation(
    "GET", "/v1/models/{model:.+}", "getModel", "Find a model that workers serve now, or a policy.",
    answers={200: ModelObject}, path_parameters={"model": "its id"}, errors=(404,),
)  # fmt: skip


class HealthRoutes:
    """`/healthz`, `/readyz` and `/v1/models`."""

    def __init__(self, services: Services, models: ServedModels, policies: KnownPolicies) -> None:
        self._served = models
        self._policies = policies
        self._place = Look(partial(services.look, services.keys.probe), "The gateway's place")

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
        looks = self._served.models(PROBE_SECONDS), self._place.found(PROBE_SECONDS)
        redis, place = await asyncio.gather(*map(_trouble, looks))
        if redis or place:
            return answer(Readiness(status="unavailable", redis=redis or _OK, place=place or _OK), 503)
        return answer(Readiness(status="ok", redis=_OK, place=_OK))

    async def _models(self, _: web.Request) -> web.Response:
        served, policies = await self._served.models(), await self._policies.names()
        models = [ModelObject(id=name) for name in sorted(served)]
        models += [ModelObject(id=name, owned_by=POLICY) for name in sorted(policies)]
        return answer(ModelList(data=models))

    async def _model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        served = await self._served.models()
        if name in served:
            return answer(ModelObject(id=name))
        policies = await self._policies.names()
        if name not in policies:
            raise model_not_found(name, served)
        return answer(ModelObject(id=name, owned_by=POLICY))


async def _trouble(look: Awaitable[object]) -> str | None:
    """Why a look has found nothing; None if it has."""
    try:
        await look
    except ClipfleetError as error:
        return type(error).__name__
    except ApiError:
        return _SILENT
    return None
