"""`/v1/batches` of a gateway in this process, over a real Valkey; no worker takes the jobs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import redis

from clipfleet.client import Client
from clipfleet.ledger import keys
from clipfleet_gateway.services import Services
from tests.support.batches import jsonl, line, saved
from tests.support.gateway_app import Asking, asking, gateway_services
from tests.support.s3 import S3Bucket

LINES = jsonl(*[line(f"{number}") for number in range(600)])
_POLL_SECONDS = 0.02
Found = tuple[int, dict[str, Any]]


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "folder":
        return str(request.getfixturevalue("tmp_path") / "gateway")
    bucket: S3Bucket = request.getfixturevalue("s3")
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    return f"{bucket.uri}/gateway"


@pytest.fixture
def services(place: str, redis_url: str) -> Iterator[Services]:
    with gateway_services(place, redis_url) as services:
        yield services


def with_key(services: Services, ask: Callable[[Asking], Awaitable[Any]], name: str = "mine") -> Any:
    async def all_of_it() -> Any:
        async with asking(services, services.keys.add(name)) as client:
            return await ask(client)

    return asyncio.run(all_of_it())


async def get(client: Asking, path: str, method: str = "GET") -> Found:
    async with client.request(method, path) as response:
        return response.status, await response.json()


async def post(client: Asking, body: Any, headers: dict[str, str] | None = None) -> Found:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **(headers or {})}
    async with client.post("/v1/batches", data=data, headers=headers) as response:
        return response.status, await response.json()


async def until(client: Asking, batch_id: str, status: str) -> dict[str, Any]:
    """The batch once it has this status; the test's timeout ends the wait."""
    while True:
        _, batch = await get(client, f"/v1/batches/{batch_id}")
        if batch["status"] == status:
            return batch
        await asyncio.sleep(_POLL_SECONDS)


async def sealed(services: Services, batch_id: str) -> None:
    """Wait until the job of a batch has all of its items."""
    while (
        status := await services.call(services.batches.jobs.status, batch_id)
    ) is None or not status.sealed:
        await asyncio.sleep(_POLL_SECONDS)


def body(file_id: str, **other: Any) -> dict[str, Any]:
    return {"input_file_id": file_id, "endpoint": "/v1/embeddings", "completion_window": "24h", **other}


def uploaded(services: Services, data: bytes = LINES) -> str:
    return saved(services.files, "mine", data).id


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"input_file_id": f"file-{'0' * 32}"}, 404, "input_file_id"),
        ({"input_file_id": "../keys/mine"}, 404, "input_file_id"),
        ({"input_file_id": None}, 400, "input_file_id"),
        ({"endpoint": "/v1/chat/completions"}, 400, "endpoint"),
        ({"completion_window": "1h"}, 400, "completion_window"),
        ({"metadata": {f"{number}": "x" for number in range(17)}}, 400, "metadata"),
        ({"metadata": {"x" * 65: "x"}}, 400, "metadata"),
        ({"metadata": {"x": "x" * 513}}, 400, "metadata"),
        ({"metadata": {"x": 1}}, 400, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, 400, "output_expires_after"),
        ({"output_expires_after": {"anchor": "now", "seconds": 3600}}, 400, "output_expires_after"),
    ],
)
def test_requests_that_are_wrong(services: Services, change: dict[str, Any], status: int, param: str) -> None:
    wrong = body(uploaded(services), **change)

    found = with_key(services, lambda client: post(client, wrong))

    assert found[0] == status
    assert found[1]["error"]["param"].startswith(param)
    assert not services.batches.open()


def test_what_is_no_json(services: Services) -> None:
    async def ask(client: Asking) -> list[int]:
        return [(await post(client, data))[0] for data in (b"", b"{", b"[]", b"[" * 100_000, b"\xff")]

    assert with_key(services, ask) == [400] * 5


def test_a_batch_waits_for_a_worker_and_is_cancelled(services: Services) -> None:
    async def ask(client: Asking) -> None:
        status, batch = await post(client, body(uploaded(services), metadata={"a": "1"}))
        assert (status, batch["status"], batch["request_counts"]["total"]) == (200, "validating", 0)
        assert batch["expires_at"] - batch["created_at"] == 86_400
        running = await until(client, batch["id"], "in_progress")
        assert running["request_counts"] == {"total": 600, "completed": 0, "failed": 0}
        status, again = await post(client, body(uploaded(services), metadata={"a": "1"}))
        assert (status, again["id"]) == (200, batch["id"])
        status, cancelled = await get(client, f"/v1/batches/{batch['id']}/cancel", "POST")
        assert (status, cancelled["status"]) == (200, "cancelling")
        ended = await until(client, batch["id"], "cancelled")
        assert ended["request_counts"] == {"total": 600, "completed": 0, "failed": 600}
        assert (ended["output_file_id"], ended["cancelling_at"] is None) == (None, False)
        _, again = await get(client, f"/v1/batches/{batch['id']}/cancel", "POST")
        assert again == ended
        async with client.get(f"/v1/files/{ended['error_file_id']}/content") as response:
            lines = [json.loads(one) for one in (await response.read()).splitlines()]
        assert [one["custom_id"] for one in lines] == [f"{number}" for number in range(600)]

    with_key(services, ask)


def test_a_batch_that_has_failed_cannot_be_cancelled(services: Services) -> None:
    async def ask(client: Asking) -> None:
        _, batch = await post(client, body(uploaded(services, b"{")))
        failed = await until(client, batch["id"], "failed")
        assert failed["errors"]["data"][0]["line"] == 1
        status, refused = await get(client, f"/v1/batches/{batch['id']}/cancel", "POST")
        assert (status, refused["error"]["code"]) == (400, "not_cancellable")

    with_key(services, ask)


def test_an_idempotency_key(services: Services) -> None:
    async def ask(client: Asking) -> None:
        first = uploaded(services)
        key = {"Idempotency-Key": "night 1"}
        _, batch = await post(client, body(first), key)
        assert (await post(client, body(uploaded(services)), key))[1]["id"] == batch["id"]
        status, refused = await post(client, body(first, metadata={"a": "1"}), key)
        assert (status, refused["error"]["code"]) == (400, "idempotency_key_reused")
        for wrong in ("x" * 256, "\xe4"):
            status, refused = await post(client, body(first), {"Idempotency-Key": wrong})
            assert (status, refused["error"]["param"]) == (400, "Idempotency-Key")

    with_key(services, ask)


def test_batches_of_another_key_answer_like_none(services: Services) -> None:
    async def make(client: Asking) -> list[str]:
        made = []
        for number in range(3):
            file_id = uploaded(services, jsonl(line(f"{number}")))
            made.append((await post(client, body(file_id)))[1]["id"])
        page = (await get(client, "/v1/batches?limit=2"))[1]
        assert ([one["id"] for one in page["data"]], page["has_more"]) == (made[:0:-1], True)
        page = (await get(client, f"/v1/batches?limit=2&after={page['last_id']}"))[1]
        assert ([one["id"] for one in page["data"]], page["has_more"]) == (made[:1], False)
        return made

    made = with_key(services, make)
    mine = uploaded(services)

    async def ask(client: Asking) -> None:
        for path, method in (("", "GET"), ("/cancel", "POST")):
            status, found = await get(client, f"/v1/batches/{made[0]}{path}", method)
            assert (status, found["error"]["code"]) == (404, "not_found")
        assert (await get(client, "/v1/batches"))[1]["data"] == []
        status, found = await post(client, body(mine))
        assert (status, found["error"]["param"]) == (404, "input_file_id")

    with_key(services, ask, "other")


def test_two_gateways_submit_one_job(place: str, redis_url: str) -> None:
    async def ask(one: Services, two: Services) -> str:
        token = one.keys.add("mine")
        async with asking(one, token) as first, asking(two, token) as second:
            file_id = uploaded(one)
            answers = await asyncio.gather(*[post(client, body(file_id)) for client in (first, second) * 4])
            (batch_id,) = {found["id"] for _, found in answers}
            await asyncio.gather(*[until(client, batch_id, "in_progress") for client in (first, second)])
            await sealed(one, batch_id)
            return str(batch_id)

    with gateway_services(place, redis_url) as one, gateway_services(place, redis_url) as two:
        batch_id = asyncio.run(ask(one, two))
    with Client(redis_url) as client:
        assert [(status.job_id, status.total) for status in client.jobs()] == [(batch_id, 600)]


def test_a_job_that_redis_has_lost_is_restored(services: Services, redis_client: redis.Redis) -> None:
    async def ask(client: Asking) -> None:
        _, batch = await post(client, body(uploaded(services)))

        await sealed(services, batch["id"])
        redis_client.flushdb()
        await sealed(services, batch["id"])
        assert (await get(client, f"/v1/batches/{batch['id']}"))[1]["status"] == "in_progress"

    with_key(services, ask)


def test_a_job_is_sealed_again_after_redis_has_forgotten_that(
    services: Services, redis_client: redis.Redis
) -> None:
    """It was restored from a copy that was made during the submit."""

    async def ask(client: Asking) -> None:
        _, batch = await post(client, body(uploaded(services)))
        await sealed(services, batch["id"])
        redis_client.hset(keys.job(batch["id"]), mapping={"sealed": 0, "state": "submitting"})
        await get(client, f"/v1/batches/{batch['id']}")
        await sealed(services, batch["id"])
        _, found = await get(client, f"/v1/batches/{batch['id']}")
        assert (found["status"], found["request_counts"]["total"]) == ("in_progress", 600)

    with_key(services, ask)
