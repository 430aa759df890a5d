"""`/v1/embeddings`, `/v1/zero-shot` and `/v1/moderations`: a request waits for its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from aiohttp import web

from clipfleet_gateway.asking.asker import Asker, kept_bytes
from clipfleet_gateway.asking.jobs import RequestJobs, Row
from clipfleet_gateway.asking.served import ServedModels
from clipfleet_gateway.errors import MODEL_NOT_FOUND, ApiError, invalid, unavailable
from clipfleet_gateway.inputs.asked import Asked, Item
from clipfleet_gateway.inputs.embeddings import all_asked_of_embedding, embedding_answer
from clipfleet_gateway.inputs.images import MOST_IMAGE_BYTES, own_file_id
from clipfleet_gateway.inputs.moderations import asked_of_moderation, by_policy, moderation_answer
from clipfleet_gateway.inputs.zero_shot import asked_of_zero_shot, zero_shot_answer
from clipfleet_gateway.keys.key import Key
from clipfleet_gateway.policies.known import KnownPolicies
from clipfleet_gateway.services import Services
from clipfleet_gateway.shapes.bodies import parsed
from clipfleet_gateway.shapes.embeddings import EmbeddingsAnswer, EmbeddingsRequest
from clipfleet_gateway.shapes.moderations import ModerationAnswer, ModerationRequest
from clipfleet_gateway.shapes.zero_shot import ZeroShotAnswer, ZeroShotRequest
from clipfleet_gateway.web.callers import CALLER
from clipfleet_gateway.web.operations import Operation, Served
from clipfleet_gateway.web.received.bodies import read_json

_EMBEDDINGS = Operation(
    "POST", "/v1/embeddings", "createEmbeddings", "Embed texts and images; all or none are answered.",
    answers={200: EmbeddingsAnswer}, body=EmbeddingsRequest, errors=(403, 404),
)  # fmt: skip
_ZERO_SHOT = Operation(
    "POST", "/v1/zero-shot", "classifyImage", "Score labels for an image.",
    answers={200: ZeroShotAnswer}, body=ZeroShotRequest, errors=(403, 404),
)  # fmt: skip
_MODERATIONS = Operation(
    "POST", "/v1/moderations", "createModeration", "Decide on an image by a policy.",
    answers={200: ModerationAnswer}, body=ModerationRequest, errors=(403, 404),
)  # fmt: skip
_DEFAULT = ""  # in place of a model that is not named; workers say which it is
_FEW_VECTORS = 16  # are written at once; more in a thread

_Parts = tuple[tuple[Asked, tuple[int, ...]], ...]


class AskingRoutes:
    """The routes."""

    def __init__(self, services: Services, served: ServedModels, policies: KnownPolicies) -> None:
        self._services = services
        self._models = served
        self._policies = policies
        jobs = RequestJobs(services.settings, services.logs)
        services.closing(jobs.close)
        self._asker = Asker(services, jobs, served)
        services.closing(self._asker.close)

    def operations(self) -> Iterable[Served]:
        """The routes."""
        yield _EMBEDDINGS, self._embed
        yield _ZERO_SHOT, self._zero_shot
        yield _MODERATIONS, self._moderate

    async def _embed(self, request: web.Request) -> web.Response:
        key = request[CALLER]
        body, parts = await read_json(request, self._services, partial(_embedding, key))
        count = sum(len(positions) for _, positions in parts)
        found = await self._rows(key, [one for one, _ in parts])
        by_position = {
            position: row.vector
            for (_, positions), rows in zip(parts, found, strict=True)
            for position, row in zip(positions, rows, strict=True)
        }
        vectors = [vector for _, vector in sorted(by_position.items()) if vector is not None]
        if len(vectors) < count:
            raise unavailable("Vectors are missing: try again")

        def write() -> str:
            return embedding_answer(body, parts[0][0].model, vectors).model_dump_json()

        return _json(write() if count <= _FEW_VECTORS else await self._services.ask(write))

    async def _zero_shot(self, request: web.Request) -> web.Response:
        key = request[CALLER]
        asked = await read_json(request, self._services, partial(_labelling, key))
        if asked.model == _DEFAULT:
            asked = replace(asked, model=await self._models.only())
        ((row,),) = await self._rows(key, [asked])
        return _json(zero_shot_answer(row.labels, row.scores).model_dump_json())

    async def _moderate(self, request: web.Request) -> web.Response:
        key = request[CALLER]
        named, asked = await read_json(request, self._services, partial(_moderation, key))
        stored = await self._policies.require(named)
        try:
            ((row,),) = await self._rows(key, [by_policy(asked, stored)])
        except ApiError as error:
            if error.code != MODEL_NOT_FOUND:
                raise
            # The client has named a policy, which there is.
            raise unavailable(f"No worker serves {stored.policy.model}, the model of this policy") from None
        if row.decided is None:
            raise unavailable("The decision is missing: try again")
        return _json(moderation_answer(stored, row.decided).model_dump_json())

    async def _rows(self, key: Key, parts: Sequence[Asked]) -> list[list[Row]]:
        """The rows of each part. What is refused is not counted, and no content is read for it."""
        inputs = sum(len(one.items) for one in parts)
        size_bytes = sum(map(kept_bytes, parts))
        async with self._asker.admitted(key.name, parts[0].model, inputs, size_bytes) as keep:
            own = await self._own_bytes(parts, key)
            keep(sum(own.get(own_file_id(item) or "", 0) for one in parts for item in one.items))
            if key.quota is not None:
                await self._services.ask(self._services.quotas.spend, key, inputs)
            if own:
                parts = await self._services.call(self._with_content, parts, key)
            return await _all([self._asker.rows(one) for one in parts])

    async def _own_bytes(self, parts: Sequence[Asked], key: Key) -> dict[str, int]:
        """The size of each own file that is named."""
        named: dict[str, str] = {}
        for one in parts:
            for item, param in zip(one.items, one.params, strict=True):
                if (file_id := own_file_id(item)) is not None:
                    named.setdefault(file_id, param)
        if not named:
            return {}
        return await self._services.call(
            lambda: {file_id: self._bytes_of(file_id, key, param) for file_id, param in named.items()}
        )

    def _bytes_of(self, file_id: str, key: Key, param: str) -> int:
        found = self._services.files.require(key.name, file_id, param).bytes
        if found > MOST_IMAGE_BYTES:
            raise invalid(f"{param}: the file is too large for an image", param, "image_too_large")
        return found

    def _with_content(self, parts: Sequence[Asked], key: Key) -> list[Asked]:
        """With the content of the key's own files in place of their ids, each read once."""
        read: dict[str, Item] = {}

        def content(item: Item, param: str) -> Item:
            file_id = own_file_id(item)
            if file_id is None:
                return item
            if file_id not in read:
                data = self._services.files.read(key.name, file_id)
                if data is None:
                    raise invalid(f"{param}: the file was deleted meanwhile", param, "not_found")
                read[file_id] = {"bytes": data}
            return read[file_id]

        return [replace(one, items=tuple(map(content, one.items, one.params))) for one in parts]


def _embedding(key: Key, body: bytes) -> tuple[EmbeddingsRequest, _Parts]:
    request = parsed(EmbeddingsRequest, body)
    return request, all_asked_of_embedding(request, key)


def _labelling(key: Key, body: bytes) -> Asked:
    request = parsed(ZeroShotRequest, body)
    if request.model is None:
        request = request.model_copy(update={"model": _DEFAULT})
    return asked_of_zero_shot(request, key)


def _moderation(key: Key, body: bytes) -> tuple[str | None, Asked]:
    request = parsed(ModerationRequest, body)
    return request.model, asked_of_moderation(request, key)


async def _all(asking: Sequence[Coroutine[Any, Any, list[Row]]]) -> list[list[Row]]:
    """All rows, or the first error; then the others are withdrawn."""
    if len(asking) == 1:
        return [await asking[0]]
    tasks = [asyncio.ensure_future(one) for one in asking]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _json(text: str) -> web.Response:
    return web.Response(text=text, content_type="application/json")
