"""`/v1/batches`: make, list, describe and cancel the batches of a key. Tending them goes on by itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial

from aiohttp import web

from clipfleet.errors import RedisUnavailableError
from clipfleet_gateway.batches.record import WINDOW_SECONDS, BatchRecord, new_batch_id
from clipfleet_gateway.errors import invalid, not_found
from clipfleet_gateway.files.record import Purpose
from clipfleet_gateway.keys.ring import now_in_utc
from clipfleet_gateway.services import Services
from clipfleet_gateway.shapes.batches import Batch, BatchesQuery, BatchList, BatchRequest, BatchStatus
from clipfleet_gateway.shapes.bodies import parsed
from clipfleet_gateway.web.answers import answer
from clipfleet_gateway.web.callers import CALLER
from clipfleet_gateway.web.operations import Operation, Served
from clipfleet_gateway.web.queries import IDEMPOTENCY_KEY, idempotency_key, query_of
from clipfleet_gateway.web.received.bodies import read_json
from clipfleet_gateway.web.tending import Tending

_ID = {"batch_id": "such as `batch_019a...`"}
_CREATE = Operation(
    "POST", "/v1/batches", "createBatch",
    "Run the requests of a file. An open batch of the same content, endpoint and metadata is returned.",
    body=BatchRequest, answers={200: Batch}, errors=(404,),
    headers={
        IDEMPOTENCY_KEY: "for 30 days, requests with the same one make one batch, even after it has ended"
    },
)  # fmt: skip
_LIST = Operation(
    "GET",
    "/v1/batches",
    "listBatches",
    "List batches, newest first.",
    query=BatchesQuery,
    answers={200: BatchList},
)
_GET = Operation(
    "GET", "/v1/batches/{batch_id}", "getBatch", "Describe a batch.",
    answers={200: Batch}, path_parameters=_ID, errors=(404,),
)  # fmt: skip
_CANCEL = Operation(
    "POST", "/v1/batches/{batch_id}/cancel", "cancelBatch", "End a batch early, and keep what is done.",
    answers={200: Batch}, path_parameters=_ID, errors=(404,),
)  # fmt: skip
_MOST_BODY_BYTES = 128 << 10  # the largest metadata in any spelling have 110
_CANCELLED = (BatchStatus.CANCELLING, BatchStatus.CANCELLED)


class BatchRoutes:
    """`/v1/batches` and what is below."""

    def __init__(self, services: Services, tending: Tending) -> None:
        self._services = services
        self._batches = services.batches
        self._tending = tending

    def operations(self) -> Iterable[Served]:
        """The routes."""
        yield _CREATE, self._create
        yield _LIST, self._list
        yield _GET, self._get
        yield _CANCEL, self._cancel

    async def _create(self, request: web.Request) -> web.Response:
        read = partial(parsed, BatchRequest)
        body = await read_json(request, self._services, read, _MOST_BODY_BYTES)
        named = idempotency_key(request)
        owner = request[CALLER].name
        batch = await self._services.call(self._new, owner, body)
        found = await self._services.call(self._batches.store.begin, batch, named)
        if named is not None and found.wants != batch.wants:
            raise invalid(
                f"This {IDEMPOTENCY_KEY} made {found.id}, which has another file, endpoint or metadata",
                IDEMPOTENCY_KEY, "idempotency_key_reused",
            )  # fmt: skip
        return await self._answer(found)

    def _new(self, owner: str, body: BatchRequest) -> BatchRecord:
        """A batch that is not kept yet. Raises `ApiError` if its input file is not there."""
        file = self._services.files.require(owner, body.input_file_id, "input_file_id")
        if file.purpose is not Purpose.BATCH:
            raise invalid(
                f"input_file_id: this file has the purpose {file.purpose}, not batch", "input_file_id"
            )
        now = now_in_utc()
        seconds = int(now.timestamp())
        expires = body.output_expires_after
        return BatchRecord(
            id=new_batch_id(now), owner=owner, endpoint=body.endpoint, input_file_id=file.id,
            input_sha256=file.sha256, metadata=body.metadata,
            output_expires_after_seconds=expires.seconds if expires else None,
            created_at=seconds, expires_at=seconds + WINDOW_SECONDS,
        )  # fmt: skip

    async def _list(self, request: web.Request) -> web.Response:
        query = query_of(request, BatchesQuery)
        found, has_more = await self._services.call(
            self._batches.store.listed, request[CALLER].name, after=query.after, limit=query.limit
        )
        data = tuple(await self._shown(found))
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return answer(BatchList(data=data, first_id=first, last_id=last, has_more=has_more))

    async def _get(self, request: web.Request) -> web.Response:
        return await self._answer(await self._batch_of(request))

    async def _cancel(self, request: web.Request) -> web.Response:
        batch = await self._services.call(self._batches.cancel, await self._batch_of(request))
        if batch.status not in _CANCELLED:
            raise invalid(f"A batch that is {batch.status} cannot be cancelled", code="not_cancellable")
        return await self._answer(batch)

    async def _batch_of(self, request: web.Request) -> BatchRecord:
        owner, batch_id = request[CALLER].name, request.match_info["batch_id"]
        batch = await self._services.call(self._batches.store.find, owner, batch_id)
        if batch is None:
            raise not_found("batch", batch_id)
        return batch

    async def _answer(self, batch: BatchRecord) -> web.Response:
        if not batch.status.is_final:
            self._tending.soon(batch.owner, batch.id)
        (shown,) = await self._shown([batch])
        return answer(shown)

    async def _shown(self, batches: Sequence[BatchRecord]) -> list[Batch]:
        progress = await self._services.ask(self._progress_of, batches)
        return [batch.shown(one) for batch, one in zip(batches, progress, strict=True)]

    def _progress_of(self, batches: Sequence[BatchRecord]) -> list[tuple[int, int] | None]:
        """Without Redis, batches are shown without their progress; it is not asked again for each."""
        found: list[tuple[int, int] | None] = []
        with suppress(RedisUnavailableError):
            for batch in batches:
                found.append(self._batches.progress(batch))
        return found + [None] * (len(batches) - len(found))
