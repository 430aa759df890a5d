"""Three keys, every operation, every object: only the owner of an object gets it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from aiohttp.test_utils import TestClient, TestServer
from pydantic import SecretStr

from clipfleet.moderation.log import write_records
from clipfleet.moderation.policy_files import PolicyFile
from clipfleet_gateway.services import Services
from clipfleet_gateway.settings import GatewaySettings
from clipfleet_gateway.web.app import make_app
from tests.support.decision_logs import CREATED, logged_job, make_record
from tests.support.policies import make_policy

T = TypeVar("T")
OWNERS = ("a", "b", "c")
LINE = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model": "demo", "input": "a"}}
WANTED = {"endpoint": "/v1/embeddings", "completion_window": "24h"}

# What an operation does with an object; {id} is its id. A body of None: there is none.
OF_A_FILE: dict[str, Any] = {
    "getFile": None,
    "getFileContent": None,
    "createBatch": {**WANTED, "input_file_id": "{id}"},
    "createJob": {"task": "embed", "model": "demo", "items": ["{id}"]},
    "createEmbeddings": {"model": "demo", "input": [{"image": "{id}"}]},
    "classifyImage": {
        "model": "demo", "inputs": {"image": "{id}"}, "parameters": {"candidate_labels": ["a", "b"]},
    },
    "createModeration": {
        "model": "uploads", "input": [{"type": "image_url", "image_url": {"url": "{id}"}}],
    },
    "deleteFile": None,
}  # fmt: skip
OF_A_BATCH: dict[str, Any] = {"getBatch": None, "cancelBatch": None}
OF_A_JOB: dict[str, Any] = {"getJob": None, "getJobRows": None, "cancelJob": None}
OF_A_DECISION: dict[str, Any] = {"getDecision": None, "addVerdict": {"verdict": "upheld"}}
WAITS_FOR_A_WORKER = ("createEmbeddings", "classifyImage", "createModeration")
LISTS = {"listFiles": "file", "listBatches": "batch", "listJobs": "job"}
WITHOUT_OBJECTS = {
    "createFile", "listModels", "getModel", "getHealth", "getReadiness", "getMetrics", "getOpenApi",
}  # fmt: skip
KINDS = {"file": OF_A_FILE, "batch": OF_A_BATCH, "job": OF_A_JOB, "decision": OF_A_DECISION}


@dataclass
class Matrix:
    """A gateway in this process with three keys, and one object of each kind for each of them."""

    client: TestClient[Any, Any]
    tokens: dict[str, str]
    operations: dict[str, tuple[str, str]] = field(default_factory=dict)  # method and path by name
    objects: dict[tuple[str, str], str] = field(default_factory=dict)  # id by kind and owner

    async def ask(self, owner: str, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {self.tokens[owner]}"}
        async with self.client.request(method, path, json=body, headers=headers) as response:
            return response.status, await response.read()

    async def does(self, owner: str, name: str, object_id: str) -> tuple[int, bytes]:
        """The answer to an operation on an object."""
        method, template = self.operations[name]
        path = template.partition("{")[0] + object_id + template.rpartition("}")[2]
        if "{" not in template:
            path = template
        asked = next(operations for operations in KINDS.values() if name in operations)[name]
        body = json.loads(json.dumps(asked).replace("{id}", object_id))
        return await asyncio.wait_for(self.ask(owner, method, path, body), 60)

    async def prepare(self) -> None:
        """Make the objects; none of them runs, as there is no worker."""
        document = json.loads((await self.ask("a", "GET", "/openapi.json"))[1])
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                self.operations[operation["operationId"]] = method.upper(), path
        for owner in OWNERS:
            file = await self._uploaded(owner)
            batch = await self.ask(owner, "POST", "/v1/batches", {**WANTED, "input_file_id": file})
            job = await self.ask(
                owner, "POST", "/v1/jobs", {"task": "embed_text", "model": "demo", "items": ["a"]}
            )
            self.objects["file", owner] = file
            for kind, (status, content) in (("batch", batch), ("job", job)):
                assert status == 200, content
                self.objects[kind, owner] = json.loads(content)["id"]

    async def _uploaded(self, owner: str) -> str:
        from aiohttp import FormData

        form = FormData({"purpose": "batch"})
        form.add_field("file", json.dumps(LINE).encode(), filename="a.jsonl")
        headers = {"Authorization": f"Bearer {self.tokens[owner]}"}
        async with self.client.post("/v1/files", data=form, headers=headers) as response:
            return str((await response.json())["id"])


@pytest.fixture
def services(tmp_path: Path, redis_url: str) -> Iterator[Services]:
    settings = GatewaySettings(redis_url=SecretStr(redis_url), gateway_output=str(tmp_path / "gateway"))
    with Services(settings) as services:
        yield services


def decided(services: Services, owner: str) -> str:
    """The id of a decision in the log of a key, as a worker records it."""
    log = services.logs.output(owner)
    job = logged_job(log, make_policy(), f"of-{owner}")
    record = make_record(job)
    write_records(log, job, 0, [record], CREATED.date())
    return str(record["decision_id"])


def run(services: Services, look: Callable[[Matrix], Awaitable[T]]) -> T:
    async def prepared() -> T:
        services.policies.add(PolicyFile(make_policy()))
        tokens = {owner: services.keys.add(owner) for owner in OWNERS}
        async with TestClient(TestServer(make_app(services))) as client:
            matrix = Matrix(client, tokens)
            await matrix.prepare()
            for owner in OWNERS:
                matrix.objects["decision", owner] = decided(services, owner)
            return await look(matrix)

    return asyncio.run(prepared())


def test_every_operation_is_in_the_matrix(services: Services) -> None:
    """A new one must say which objects it names."""

    async def names(matrix: Matrix) -> set[str]:
        return set(matrix.operations)

    known = {name for operations in KINDS.values() for name in operations} | set(LISTS) | WITHOUT_OBJECTS
    assert run(services, names) == known


def test_only_the_owner_gets_an_object(services: Services) -> None:
    async def look(matrix: Matrix) -> None:
        for kind, operations in KINDS.items():
            for owner in OWNERS:
                object_id = matrix.objects[kind, owner]
                for name in operations:
                    for other in OWNERS:
                        if other != owner:
                            status, content = await matrix.does(other, name, object_id)
                            error = json.loads(content)["error"]
                            assert (status, error["code"]) == (404, "not_found"), (other, name, kind, owner)
        for (kind, owner), object_id in matrix.objects.items():
            for name in KINDS[kind]:
                if name not in WAITS_FOR_A_WORKER:
                    status, content = await matrix.does(owner, name, object_id)
                    assert status == 200, (owner, name, content)

    run(services, look)


def test_lists_hold_the_own_objects_only(services: Services) -> None:
    async def look(matrix: Matrix) -> None:
        for name, kind in LISTS.items():
            for owner in OWNERS:
                _, content = await matrix.ask(owner, *matrix.operations[name])
                listed = [one["id"] for one in json.loads(content)["data"]]
                assert listed == [matrix.objects[kind, owner]], (name, owner)
                for other in OWNERS:  # an id of another key is a place to begin at, and no object
                    method, path = matrix.operations[name]
                    status, content = await matrix.ask(
                        owner, method, f"{path}?after={matrix.objects[kind, other]}"
                    )
                    found = {one["id"] for one in json.loads(content)["data"]}
                    assert status == 200 and found <= {matrix.objects[kind, owner]}

    run(services, look)
