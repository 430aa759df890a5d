"""`/v1/decisions`: read what explains a decision of a key, and add verdicts to it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import partial

from aiohttp import web

from clipfleet.contract.policies import DecisionId
from clipfleet.errors import OutputDamagedError
from clipfleet.moderation.explaining import Explained
from clipfleet.moderation.log import find_record, read_policy
from clipfleet.moderation.verdicts import ReviewerVerdict, add_verdict, verdicts_of
from clipfleet_gateway.errors import not_found
from clipfleet_gateway.services import Services
from clipfleet_gateway.shapes.bodies import parsed
from clipfleet_gateway.shapes.decisions import DecisionObject, VerdictObject, VerdictRequest
from clipfleet_gateway.web.answers import answer
from clipfleet_gateway.web.callers import CALLER
from clipfleet_gateway.web.operations import Operation, Served
from clipfleet_gateway.web.received.bodies import read_json

_ID = {"decision_id": "such as `dec-20261203-3f9a1c2b7d4e-0-17`"}
_GET = Operation(
    "GET", "/v1/decisions/{decision_id}", "getDecision", "Explain a decision of this key.",
    answers={200: DecisionObject}, path_parameters=_ID, errors=(404,),
)  # fmt: skip
_VERDICT = Operation(
    "POST", "/v1/decisions/{decision_id}/verdict", "addVerdict",
    "Record what a reviewer says about a decision, beside earlier verdicts.",
    answers={200: VerdictObject}, body=VerdictRequest, path_parameters=_ID, errors=(404,),
)  # fmt: skip
_MOST_BODY_BYTES = 1 << 20


class DecisionRoutes:
    """`/v1/decisions` and what is below."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def operations(self) -> Iterable[Served]:
        """The routes."""
        yield _GET, self._get
        yield _VERDICT, self._add

    async def _get(self, request: web.Request) -> web.Response:
        owner, text = request[CALLER].name, request.match_info["decision_id"]
        return answer(await self._services.call(self._explained, owner, text))

    async def _add(self, request: web.Request) -> web.Response:
        read = partial(parsed, VerdictRequest)
        body = await read_json(request, self._services, read, _MOST_BODY_BYTES)
        owner, text = request[CALLER].name, request.match_info["decision_id"]
        return answer(await self._services.call(self._added, owner, text, body))

    def _explained(self, owner: str, text: str) -> DecisionObject:
        log, decision_id = self._services.logs.output(owner), _parsed(text)
        record = find_record(log, decision_id)
        if record is None:
            raise not_found("decision", text)
        policy = read_policy(log, record["policy"]["sha256"])
        if policy is None:
            raise OutputDamagedError(f"{log.uri}: the policy of {text} is gone")
        explained = Explained(record, policy, verdicts_of(log, decision_id))
        return DecisionObject.model_validate(explained.document())

    def _added(self, owner: str, text: str, body: VerdictRequest) -> VerdictObject:
        log = self._services.logs.output(owner)
        record = find_record(log, _parsed(text))
        if record is None:
            raise not_found("decision", text)
        given = ReviewerVerdict(
            verdict=body.verdict, labels=body.labels, by=body.by, note=body.note, is_appeal=body.appeal
        )
        return VerdictObject.model_validate(add_verdict(log, record, given).model_dump())


def _parsed(text: str) -> DecisionId:
    """Raises `ApiError`: what is no id names no decision (404)."""
    with suppress(ValueError):
        return DecisionId.of_text(text)
    raise not_found("decision", text[:100])
