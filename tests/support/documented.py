"""Requests of a gateway, held against its OpenAPI document: nothing is served or taken beside it.

`python -m tests.support.documented` writes the document into docs/reference.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from aiohttp.test_utils import TestClient, TestServer
from jsonschema import Draft202012Validator
from pydantic import SecretStr

from clipfleet_gateway.services import Services
from clipfleet_gateway.settings import GatewaySettings
from clipfleet_gateway.web.app import make_app
from tests.support.documents import ROOT

WRITTEN = ROOT / "docs" / "reference" / "openapi.json"
_REFS = "#/components/schemas/"
Field = tuple[str, str]  # of a schema
Json = dict[str, Any]


def served_document() -> Json:
    """What any gateway of this version serves at `/openapi.json`; needs no service."""

    async def ask(services: Services) -> Json:
        async with (
            TestClient(TestServer(make_app(services))) as client,
            client.get("/openapi.json") as response,
        ):
            found: Json = await response.json()
            return found

    with TemporaryDirectory() as folder:
        settings = GatewaySettings(redis_url=SecretStr("redis://127.0.0.1:1/0"), gateway_output=folder)
        with Services(settings) as services:
            return asyncio.run(ask(services))


def written(document: Json) -> str:
    """As it stands in docs/reference."""
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


class Documented:
    """Checks requests and answers against a document, and remembers what it has seen of it."""

    def __init__(self, document: Json) -> None:
        self._document = document
        strict = _without_more(document)
        self._components: Json = strict["components"]
        self.done: set[tuple[str, str]] = set()  # operations, and statuses of their answers
        self.served: set[Field] = set()  # with a value that is not null
        self.taken: set[Field] = set()  # by requests that were answered with success

    def exchanged(
        self,
        method: str,
        target: str,
        status: int,
        content_type: str,
        body: bytes,
        *,
        sent: object = None,
        form: Mapping[str, object] | None = None,
    ) -> None:
        """Check one exchange.

        Args:
            method: of the request.
            target: path and query.
            status: of the answer.
            content_type: likewise.
            body: likewise.
            sent: JSON body of the request; None: it had none.
            form: parts of a multipart body.
        """
        path, operation = self._operation(method, urlsplit(target).path)
        assert str(status) in operation["responses"], (method, target, status, body[:2000])
        answer = self._resolved(operation["responses"][str(status)])
        self.done.add((operation["operationId"], str(status)))
        media_type = content_type.partition(";")[0]
        assert [*answer["content"]] == [media_type], (method, path, status)
        schema = answer["content"][media_type].get("schema")
        if schema is not None:
            found = json.loads(body)
            self._validate(schema, found)
            self.served.update(self._fields(schema, found, ""))
        if status < 400:
            self._take(operation, target, sent, form)

    def _take(self, operation: Json, target: str, sent: object, form: Mapping[str, object] | None) -> None:
        name = operation["operationId"]
        known = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "query"}
        asked = {word for word, _ in parse_qsl(urlsplit(target).query)}
        assert asked <= known, (name, asked - known)
        self.taken.update((name, word) for word in asked)
        if sent is not None:
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            self._validate(schema, sent)
            self.taken.update(self._fields(schema, sent, ""))
        if form is not None:
            schema = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
            assert set(self._resolved(schema)["properties"]) >= set(form)
            self.taken.update((_name(schema), part) for part in form)

    def documented(self, operation: str) -> set[str]:
        """Statuses of success of an operation."""
        (found,) = [one for one in self._operations() if one["operationId"] == operation]
        return {status for status in found["responses"] if status < "400"}

    def operations(self) -> set[str]:
        """All operations."""
        return {one["operationId"] for one in self._operations()}

    def answer_fields(self) -> set[Field]:
        """All fields of all answers."""
        found: set[Field] = set()
        for operation in self._operations():
            for answer in map(self._resolved, operation["responses"].values()):
                for content in answer["content"].values():
                    found.update(self._all_fields(content.get("schema", {}), "", set()))
        return found

    def request_fields(self) -> set[Field]:
        """All fields of all bodies, and all parameters in URLs."""
        found: set[Field] = set()
        for operation in self._operations():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                found.update(self._all_fields(content["schema"], "", set()))
            parameters = [one for one in operation.get("parameters", ()) if one["in"] == "query"]
            found.update((operation["operationId"], one["name"]) for one in parameters)
        return found

    def _operations(self) -> Iterator[Json]:
        for path in self._document["paths"].values():
            yield from path.values()

    def _operation(self, method: str, path: str) -> tuple[str, Json]:
        found = [
            (template, operations[method.lower()])
            for template, operations in self._document["paths"].items()
            if method.lower() in operations and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path)
        ]
        assert len(found) == 1, (method, path, found)
        return found[0]

    def _validate(self, schema: Json, found: object) -> None:
        Draft202012Validator({**schema, "components": self._components}).validate(found)

    def _fits(self, schema: Json, found: object) -> bool:
        return bool(Draft202012Validator({**schema, "components": self._components}).is_valid(found))

    def _resolved(self, schema: Json) -> Json:
        if "$ref" not in schema:
            return schema
        kind, name = schema["$ref"].split("/")[-2:]
        found: Json = self._components[kind][name]
        return found

    def _fields(self, schema: Json, found: object, above: str) -> Iterator[Field]:
        """Those that have a value, by the schema that describes them."""
        name, whole = _name(schema) or above, self._resolved(schema)
        for inner in whole.get("anyOf", whole.get("oneOf", ())):
            if self._fits(inner, found):
                yield from self._fields(inner, found, name)
        if isinstance(found, list):
            for one in found:
                yield from self._fields(whole.get("items", {}), one, name)
        if isinstance(found, dict):
            for word, inner in whole.get("properties", {}).items():
                if found.get(word) is not None:
                    yield name, word
                    yield from self._fields(inner, found[word], f"{name}.{word}")
            if isinstance(whole.get("additionalProperties"), dict):
                for one in found.values():
                    yield from self._fields(whole["additionalProperties"], one, name)

    def _all_fields(self, schema: Json, above: str, known: set[str]) -> Iterator[Field]:
        if schema.get("$ref") in known:
            return
        if "$ref" in schema:
            known = known | {schema["$ref"]}
        name, whole = _name(schema) or above, self._resolved(schema)
        for inner in (*whole.get("anyOf", ()), *whole.get("oneOf", ())):
            yield from self._all_fields(inner, name, known)
        for word, inner in whole.get("properties", {}).items():
            yield name, word
            yield from self._all_fields(inner, f"{name}.{word}", known)
        for place in ("items", "additionalProperties"):
            if isinstance(whole.get(place), dict):
                yield from self._all_fields(whole[place], name, known)


def _name(schema: Json) -> str:
    ref: str = schema.get("$ref", "")
    return ref.removeprefix(_REFS)


def _without_more(document: Json) -> Json:
    """The same document, in which objects have no other fields than those described."""
    strict = deepcopy(document)

    def close(part: object) -> None:
        if isinstance(part, dict):
            if isinstance(part.get("properties"), dict) and "type" in part:
                part.setdefault("additionalProperties", False)
            for inner in part.values():
                close(inner)
        elif isinstance(part, list):
            for inner in part:
                close(inner)

    close(strict)
    return strict


if __name__ == "__main__":
    Path(WRITTEN).write_text(written(served_document()), encoding="utf-8")
