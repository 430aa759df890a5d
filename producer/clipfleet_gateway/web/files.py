"""`/v1/files`: upload, list, read and delete the files of a key. Those of other keys answer like none."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import pyarrow as pa
from aiohttp import web

from clipfleet_gateway.errors import not_found
from clipfleet_gateway.files.record import Purpose
from clipfleet_gateway.services import Services
from clipfleet_gateway.shapes.files import FileDeleted, FileList, FileObject, FilesQuery, FileUpload
from clipfleet_gateway.web.answers import answer, stream
from clipfleet_gateway.web.callers import CALLER
from clipfleet_gateway.web.operations import Form, Operation, Raw, Served
from clipfleet_gateway.web.queries import query_of
from clipfleet_gateway.web.received.uploads import Upload

_PIECE_BYTES = 1 << 18
_ID = {"file_id": "such as `file-019a...`"}
_UPLOAD = Operation(
    "POST", "/v1/files", "createFile", "Upload a file.",
    body=Form(FileUpload), answers={200: FileObject},
)  # fmt: skip
_LIST = Operation(
    "GET", "/v1/files", "listFiles", "List files, newest first.", query=FilesQuery, answers={200: FileList}
)
_GET = Operation(
    "GET", "/v1/files/{file_id}", "getFile", "Describe a file.",
    answers={200: FileObject}, path_parameters=_ID, errors=(404,),
)  # fmt: skip
_DELETE = Operation(
    "DELETE", "/v1/files/{file_id}", "deleteFile", "Delete a file. A batch that has read it goes on.",
    answers={200: FileDeleted}, path_parameters=_ID, errors=(404,),
)  # fmt: skip
_CONTENT = Operation(
    "GET", "/v1/files/{file_id}/content", "getFileContent", "Read a file.",
    answers={200: Raw("application/octet-stream", "The bytes that were uploaded, or the lines of a batch.")},
    path_parameters=_ID, errors=(404,),
)  # fmt: skip


class FileRoutes:
    """`/v1/files` and what is below."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._files = services.files

    def operations(self) -> Iterable[Served]:
        """The routes."""
        yield _UPLOAD, self._upload
        yield _LIST, self._list
        yield _GET, self._get
        yield _DELETE, self._delete
        yield _CONTENT, self._content

    async def _upload(self, request: web.Request) -> web.Response:
        received = await self._services.call(self._files.receive)
        try:
            upload = Upload(self._services, received)
            form = await upload.read(request)
            record = await self._services.call(
                self._files.save, request[CALLER].name, received,
                filename=upload.filename, purpose=Purpose(form.purpose),
                expires_after_seconds=form.expires_after_seconds,
            )  # fmt: skip
        finally:
            await self._services.call(received.close)
        return answer(FileObject.of(record))

    async def _list(self, request: web.Request) -> web.Response:
        query = query_of(request, FilesQuery)
        records, has_more = await self._services.call(
            self._files.listed, request[CALLER].name,
            after=query.after, limit=query.limit, order=query.order, purpose=query.purpose,
        )  # fmt: skip
        data = tuple(map(FileObject.of, records))
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return answer(FileList(data=data, first_id=first, last_id=last, has_more=has_more))

    async def _get(self, request: web.Request) -> web.Response:
        owner, file_id = request[CALLER].name, request.match_info["file_id"]
        return answer(FileObject.of(await self._services.call(self._files.require, owner, file_id)))

    async def _delete(self, request: web.Request) -> web.Response:
        owner, file_id = request[CALLER].name, request.match_info["file_id"]
        if not await self._services.call(self._files.delete, owner, file_id):
            raise not_found("file", file_id)
        return answer(FileDeleted(id=file_id))

    async def _content(self, request: web.Request) -> web.StreamResponse:
        owner, file_id = request[CALLER].name, request.match_info["file_id"]
        record = await self._services.call(self._files.require, owner, file_id)
        try:
            content = await self._services.call(self._files.content, owner, file_id)
        except FileNotFoundError:  # it was deleted just now
            raise not_found("file", file_id) from None
        try:
            return await self._send(request, content, record.bytes)
        finally:
            await self._services.call(content.close)

    async def _send(
        self, request: web.Request, content: pa.NativeFile, size_bytes: int
    ) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_type = "application/octet-stream"
        response.content_length = size_bytes
        return await stream(request, response, partial(self._services.call, content.read, _PIECE_BYTES))
