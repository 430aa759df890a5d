"""An upload (`multipart/form-data`), received piece by piece: it never lies in memory as a whole."""

from __future__ import annotations

from collections.abc import AsyncIterator
from http import HTTPStatus

from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError
from pydantic import ValidationError

from clipfleet_gateway.errors import ApiError, invalid
from clipfleet_gateway.files.store import Received
from clipfleet_gateway.services import Services
from clipfleet_gateway.shapes.bodies import problem_of
from clipfleet_gateway.shapes.files import FileUpload

_PIECE_BYTES = 1 << 20
_READ_BYTES = 1 << 16
_MOST_FIELD_BYTES = 1 << 10
_MOST_FIELDS = 20
_AROUND_BYTES = 1 << 20  # what a form may have besides the file
_MOST_NAME_CHARACTERS = 255
_FILE = "file"
_PLAIN = ("", "binary", "7bit", "8bit", "identity")
# What aiohttp raises for bodies that are no form, or end in the middle of one.
_MALFORMED = (ValueError, LookupError, AssertionError, RuntimeError, HttpProcessingError)


class Upload:
    """A form that arrives: the content goes to `received`, all else is in `form` and `filename` then."""

    def __init__(self, services: Services, received: Received) -> None:
        self._services = services
        self._received = received
        self._most_bytes = services.settings.gateway_file_bytes
        self._fields: dict[str, str] = {}
        self._has_file = False
        self.filename = ""

    async def read(self, request: web.Request) -> FileUpload:
        """Read the body of a request to its end.

        Raises:
            ApiError: it is too large, or not a form with a file and the fields of `FileUpload`.
        """
        if request.content_type != "multipart/form-data":
            status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
            raise invalid(
                "Send the file as multipart/form-data", code="unsupported_media_type", status=status
            )
        if (request.content_length or 0) > self._most_bytes + _AROUND_BYTES:
            raise self._too_large()
        try:
            reader = await request.multipart()
            while (part := await reader.next()) is not None:
                await self._read_part(part)
        except _MALFORMED:
            raise invalid(
                "The body is not multipart/form-data, or ends too early", code="invalid_form"
            ) from None
        return self._form()

    async def _read_part(self, part: object) -> None:
        if not isinstance(part, BodyPartReader) or part.name is None:
            raise invalid(
                "Each part of the form needs a name, and none may hold other parts", code="invalid_form"
            )
        for header in ("Content-Transfer-Encoding", "Content-Encoding"):
            if part.headers.get(header, "").lower() not in _PLAIN:
                raise invalid(f"{part.name}: send it as it is, without {header}", part.name, "invalid_form")
        if part.name != _FILE:
            await self._read_field(part, part.name)
        elif self._has_file:
            raise invalid("file: send one file at a time", _FILE, "invalid_form")
        else:
            self._has_file = True
            self.filename = _shown(part.filename)
            async for piece in _pieces(part):
                if self._received.bytes + len(piece) > self._most_bytes:
                    raise self._too_large()
                await self._services.call(self._received.write, piece)

    async def _read_field(self, part: BodyPartReader, name: str) -> None:
        data = bytearray()
        while read := await part.read_chunk(_READ_BYTES):
            data += read
            if len(data) > _MOST_FIELD_BYTES:
                raise invalid(f"{name}: it is too long", name, "invalid_form")
        if name in self._fields or len(self._fields) >= _MOST_FIELDS:
            raise invalid(f"{name}: it is given twice, or there are too many fields", name, "invalid_form")
        self._fields[name] = data.decode()

    def _form(self) -> FileUpload:
        content = {_FILE: b""} if self._has_file else {}
        try:
            form = FileUpload.model_validate({**self._fields, **content})
        except ValidationError as error:
            raise problem_of(error) from None
        if (form.expires_after_anchor is None) != (form.expires_after_seconds is None):
            raise invalid("expires_after: give `anchor` and `seconds`, or neither", "expires_after")
        if not self._received.bytes:
            raise invalid("file: it is empty", _FILE, "empty_file")
        return form

    def _too_large(self) -> ApiError:
        return invalid(
            f"file: it has more than {self._most_bytes:,} bytes: upload it in several files",
            _FILE, "file_too_large", status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        )  # fmt: skip


async def _pieces(part: BodyPartReader) -> AsyncIterator[bytes]:
    held = bytearray()
    while read := await part.read_chunk(_READ_BYTES):
        held += read
        if len(held) >= _PIECE_BYTES:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)


def _shown(filename: str | None) -> str:
    """The name of a file as lists show it; it never names anything here."""
    text = (filename or "upload").encode(errors="replace").decode()
    return "".join(one if one.isprintable() else "?" for one in text)[:_MOST_NAME_CHARACTERS]
