"""The OpenAPI 3.1 document of all operations, made of what routes declare, and the route `/openapi.json`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from aiohttp import web
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode
from pydantic_core import core_schema
from typing_extensions import override

import clipfleet
from clipfleet_gateway.errors import ErrorBody
from clipfleet_gateway.web.guards import OPEN
from clipfleet_gateway.web.operations import Form, Operation, Raw, Served, Shape

_OPENAPI = Operation(
    "GET", "/openapi.json", "getOpenApi", "Describe all operations.",
    answers={200: Raw("application/json", "this document")},
)  # fmt: skip
_REFS = "#/components/schemas/"
_TEXT = {"type": "string"}
_OF_ALL = (HTTPStatus.MISDIRECTED_REQUEST, HTTPStatus.INTERNAL_SERVER_ERROR)
_OF_KEYS = (
    HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.SERVICE_UNAVAILABLE,
)  # fmt: skip
_OF_BODIES = (
    HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    HTTPStatus.EXPECTATION_FAILED,
)  # fmt: skip
_MEANINGS: Mapping[int, str] = {
    400: "The request is wrong; `param` says where, such as `input[3]`.",
    401: "No key, or one that opens nothing.",
    403: "The key must not do this, or not read this address.",
    404: "There is no such object, or it is that of another key.",
    408: "The body arrives too slowly.",
    409: "It cannot be done in the present state.",
    413: "The body is too large.",
    415: "The body is of another type, or compressed.",
    417: "The Expect header is another one than `100-continue`.",
    421: "The Host header names another server.",
    429: "Too much at once, or the quota is spent: try again after `Retry-After` seconds.",
    500: "An error of the gateway, logged under `x-request-id`.",
    503: "Redis, the gateway's place or all workers are away: try again after `Retry-After` seconds.",
}
_RETRIED = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
Json = dict[str, Any]


class OpenApiRoutes:
    """`/openapi.json`, of itself and all others."""

    def __init__(self, others: Sequence[Operation]) -> None:
        self._text = json.dumps(document([*others, _OPENAPI]), ensure_ascii=False)

    def operations(self) -> Iterable[Served]:
        """The route."""
        yield _OPENAPI, self._document

    async def _document(self, _: web.Request) -> web.Response:
        return web.Response(text=self._text, content_type="application/json")


def document(operations: Sequence[Operation]) -> Json:
    """The document, in the order of the operations."""
    schemas = _schemas(operations)
    paths: dict[str, Json] = {}
    for operation in operations:
        paths.setdefault(operation.template, {})[operation.method.lower()] = _described(operation, schemas)
    statuses = sorted({status for operation in operations for status in _errors(operation)})
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "clipfleet",
            "version": clipfleet.__version__,
            "summary": "Labels and embeddings of images, one by one and by the million.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "what `clipfleet-gateway keys add NAME` prints",
                }
            },
            "responses": {str(status): _error(status, schemas) for status in statuses},
            "schemas": schemas.definitions,
        },
    }


class _Served(GenerateJsonSchema):
    """Answers hold all of their fields. Titles of fields would repeat their names."""

    @override
    def field_is_required(
        self,
        field: core_schema.ModelField | core_schema.DataclassField | core_schema.TypedDictField,
        total: bool,
    ) -> bool:
        return self.mode == "serialization" or super().field_is_required(field, total)

    @override
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


@dataclass(frozen=True)
class _Schemas:
    asked: Mapping[str, Json]  # by the key of a shape
    answered: Mapping[str, Json]
    queries: Mapping[str, Json]  # whole, by the same
    definitions: Json  # what the others refer to


def _schemas(operations: Sequence[Operation]) -> _Schemas:
    asked, answered = {}, {_key(ErrorBody): ErrorBody}
    queries = {_key(operation.query): operation.query for operation in operations if operation.query}
    for operation in operations:
        if operation.body is not None:
            shape, _ = _body(operation.body)
            asked[_key(shape)] = shape
        shapes = [shape for shape in operation.answers.values() if not isinstance(shape, Raw)]
        answered.update({_key(shape): shape for shape in shapes})
    inputs: list[tuple[str, JsonSchemaMode, TypeAdapter[Any]]] = [
        *((key, "validation", TypeAdapter(shape)) for key, shape in (asked | queries).items()),
        *((key, "serialization", TypeAdapter(shape)) for key, shape in answered.items()),
    ]
    found, rest = TypeAdapter.json_schemas(inputs, ref_template=_REFS + "{model}", schema_generator=_Served)
    definitions = rest.get("$defs", {})
    return _Schemas(
        asked={key: found[key, "validation"] for key in asked},
        answered={key: found[key, "serialization"] for key in answered},
        queries={
            key: definitions.pop(found[key, "validation"]["$ref"].removeprefix(_REFS)) for key in queries
        },
        definitions=definitions,
    )


def _key(shape: Shape) -> str:
    return f"{shape.__module__}.{shape.__qualname__}" if isinstance(shape, type) else repr(shape)


def _body(body: Shape | Form) -> tuple[Shape, str]:
    """The shape of a request, and its media type."""
    return (body.shape, "multipart/form-data") if isinstance(body, Form) else (body, "application/json")


def _described(operation: Operation, schemas: _Schemas) -> Json:
    described: Json = {"operationId": operation.name, "summary": operation.summary}
    parameters = [*_parameters(operation, schemas)]
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        shape, media_type = _body(operation.body)
        content = {media_type: {"schema": schemas.asked[_key(shape)]}}
        described["requestBody"] = {"required": True, "content": content}
    described["responses"] = {
        **{str(status): _answer(answer, schemas) for status, answer in operation.answers.items()},
        **{str(status): {"$ref": f"#/components/responses/{status}"} for status in _errors(operation)},
    }
    if operation.path in OPEN:
        described["security"] = []
    return described


def _parameters(operation: Operation, schemas: _Schemas) -> Iterator[Json]:
    for name, meaning in operation.path_parameters.items():
        yield {"name": name, "in": "path", "required": True, "description": meaning, "schema": _TEXT}
    if operation.query is not None:
        query = schemas.queries[_key(operation.query)]
        for name, found in query["properties"].items():
            schema = {word: value for word, value in found.items() if word != "description"}
            said = {"description": found["description"]} if "description" in found else {}
            is_required = name in query.get("required", ())
            yield {"name": name, "in": "query", "required": is_required, **said, "schema": schema}
    for name, meaning in operation.headers.items():
        yield {"name": name, "in": "header", "required": False, "description": meaning, "schema": _TEXT}


def _errors(operation: Operation) -> list[int]:
    """Statuses that are answered with an error object."""
    found = {*_OF_ALL, *operation.errors}
    if operation.path not in OPEN:
        found.update(_OF_KEYS)
    if operation.body is not None:
        found.update(_OF_BODIES)
    return sorted(int(status) for status in found - set(operation.answers))


def _answer(answer: Shape | Raw, schemas: _Schemas) -> Json:
    if isinstance(answer, Raw):
        return {"description": answer.meaning, "content": {answer.media_type: {}}}
    words = (getattr(answer, "__doc__", None) or "").strip().partition("\n")[0]
    content = {"application/json": {"schema": schemas.answered[_key(answer)]}}
    return {"description": words, "content": content}


def _error(status: int, schemas: _Schemas) -> Json:
    found: Json = {
        "description": _MEANINGS[status],
        "content": {"application/json": {"schema": schemas.answered[_key(ErrorBody)]}},
    }
    if status in _RETRIED:
        found["headers"] = {"Retry-After": {"description": "in seconds", "schema": {"type": "integer"}}}
    return found
