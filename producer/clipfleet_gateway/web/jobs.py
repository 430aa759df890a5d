"""`/v1/jobs`: submit, list, describe and cancel the jobs of a key, and read their rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import partial
from http import HTTPStatus
from itertools import islice

from aiohttp import web

from clipfleet.errors import ResultsNotReadyError
from clipfleet.outputs import open_output
from clipfleet_gateway.errors import invalid, not_found
from clipfleet_gateway.jobs.record import JobRecord
from clipfleet_gateway.services import Services
from clipfleet_gateway.shapes.bodies import parsed
from clipfleet_gateway.shapes.jobs import JobList, JobObject, JobRequest, JobsQuery, RowsQuery
from clipfleet_gateway.web.answers import answer, stream
from clipfleet_gateway.web.callers import CALLER
from clipfleet_gateway.web.operations import Operation, Raw, Served
from clipfleet_gateway.web.queries import IDEMPOTENCY_KEY, idempotency_key, query_of
from clipfleet_gateway.web.received.bodies import read_json
from clipfleet_gateway.web.tending import Tending

COMPLETE = "x-clipfleet-complete"
MOST_DESCRIPTION_BYTES = 8 << 20  # of a job but its items: Redis and each version of its record hold them
_PIECE_BYTES = 1 << 18
_ID = {"job_id": "such as `job_019a...`"}
_CREATE = Operation(
    "POST", "/v1/jobs", "createJob", "Submit a job. Its items are read after the answer.",
    body=JobRequest, answers={200: JobObject}, errors=(403, 404, 415),
    headers={IDEMPOTENCY_KEY: "for 30 days, requests with the same one make one job"},
)  # fmt: skip
_LIST = Operation(
    "GET", "/v1/jobs", "listJobs", "List jobs, newest first.", query=JobsQuery, answers={200: JobList}
)
_GET = Operation(
    "GET", "/v1/jobs/{job_id}", "getJob", "Describe a job.",
    answers={200: JobObject}, path_parameters=_ID, errors=(404,),
)  # fmt: skip
_ROWS = Operation(
    "GET", "/v1/jobs/{job_id}/rows", "getJobRows",
    f"Read the rows written so far, in the order of the items. The header `{COMPLETE}` is `true` if these "
    "are all rows of a job that has finished, else `false`.",
    answers={200: Raw("application/x-ndjson", "A row per line, as `clipfleet results` writes it.")},
    query=RowsQuery, path_parameters=_ID, errors=(404,),
)  # fmt: skip
_CANCEL = Operation(
    "POST", "/v1/jobs/{job_id}/cancel", "cancelJob",
    "End a job early, and keep its rows. One that has ended stays as it is.",
    answers={200: JobObject}, path_parameters=_ID, errors=(404,),
)  # fmt: skip


class JobRoutes:
    """`/v1/jobs` and what is below."""

    def __init__(self, services: Services, tending: Tending) -> None:
        self._services = services
        self._jobs = services.jobs
        self._tending = tending

    def operations(self) -> Iterable[Served]:
        """The routes."""
        yield _CREATE, self._create
        yield _LIST, self._list
        yield _GET, self._get
        yield _ROWS, self._rows
        yield _CANCEL, self._cancel

    async def _create(self, request: web.Request) -> web.Response:
        body, digest = await read_json(request, self._services, _read)
        key, named = request[CALLER], idempotency_key(request)
        job = await self._services.call(self._jobs.begin, body, digest, key, named)
        if job.digest != digest:
            raise invalid(
                f"This {IDEMPOTENCY_KEY} made {job.id} of another request", IDEMPOTENCY_KEY,
                "idempotency_key_reused",
            )  # fmt: skip
        return await self._answer(request, job)

    async def _list(self, request: web.Request) -> web.Response:
        query = query_of(request, JobsQuery)
        found, has_more = await self._services.call(
            self._jobs.store.listed, request[CALLER].name, after=query.after, limit=query.limit
        )
        data = tuple(await self._services.ask(lambda: [self._shown(request, job) for job in found]))
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return answer(JobList(data=data, first_id=first, last_id=last, has_more=has_more))

    async def _get(self, request: web.Request) -> web.Response:
        return await self._answer(request, await self._job_of(request))

    async def _cancel(self, request: web.Request) -> web.Response:
        job = await self._services.call(self._jobs.cancel, await self._job_of(request))
        return await self._answer(request, job)

    async def _job_of(self, request: web.Request) -> JobRecord:
        owner, job_id = request[CALLER].name, request.match_info["job_id"]
        job = await self._services.call(self._jobs.store.find, owner, job_id)
        if job is None:
            raise not_found("job", job_id)
        return job

    async def _answer(self, request: web.Request, job: JobRecord) -> web.Response:
        if job.end is None:
            self._tending.soon(job.owner, job.id)
        return answer(await self._services.ask(self._shown, request, job))

    def _shown(self, request: web.Request, job: JobRecord) -> JobObject:
        return job.shown(request[CALLER].lane, None if job.end else self._jobs.counts(job))

    async def _rows(self, request: web.Request) -> web.StreamResponse:
        query = query_of(request, RowsQuery)
        job = await self._job_of(request)
        is_complete, pieces = await self._services.call(_opened, self._jobs.store.output(job.id), query)
        response = web.StreamResponse(headers={COMPLETE: "true" if is_complete else "false"})
        response.content_type = "application/x-ndjson"
        return await stream(request, response, partial(self._services.call, next, pieces, None))


def _read(body: bytes) -> tuple[JobRequest, str]:
    request = parsed(JobRequest, body)
    if len(request.model_dump_json(exclude={"items"}, exclude_unset=True)) > MOST_DESCRIPTION_BYTES:
        raise invalid(
            f"All but `items` of a job has at most {MOST_DESCRIPTION_BYTES:,} bytes: give fewer labels",
            "labels" if request.labels else "label_sets", "labels_too_large",
            status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        )  # fmt: skip
    return request, hashlib.sha256(body).hexdigest()


def _opened(output: str, query: RowsQuery) -> tuple[bool, Iterator[bytes]]:
    """Whether an output has all rows of its job, and the chosen ones, in pieces of whole lines."""
    from clipfleet.parts.json_rows import json_lines
    from clipfleet.results.part_rows import PartRows
    from clipfleet.results.selection import Selection

    reader = PartRows(open_output(output))
    is_complete = reader.finished_at() is not None
    try:
        stored = Selection(failed=query.failed, label=query.label).read(reader, query.limit)
    except ResultsNotReadyError:
        return is_complete, iter(())
    lines = (line for batch in stored.batches for line in json_lines(batch))
    return is_complete, _in_pieces(islice(lines, query.limit))


def _in_pieces(lines: Iterable[str]) -> Iterator[bytes]:
    piece = bytearray()
    for line in lines:
        piece += line.encode()
        if len(piece) >= _PIECE_BYTES:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)
