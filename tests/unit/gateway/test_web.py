"""What every request passes: its key, its host, and errors as OpenAI writes them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from clipfleet.errors import JobNotFoundError, QuotaExceededError, RedisUnavailableError, UsageError
from clipfleet_gateway.errors import invalid, model_not_found
from clipfleet_gateway.keys.key import Key, new_secret, split_token, token_of
from clipfleet_gateway.keys.known import KnownKeys
from clipfleet_gateway.keys.ring import KeyRing
from clipfleet_gateway.web import guards
from clipfleet_gateway.web.callers import CALLER, Callers
from tests.support.doubles import Clock

Answer = tuple[int, dict[str, Any], Mapping[str, str]]


class Door:
    """A gateway with one path, which raises or answers what a test says."""

    def __init__(self, ring: KeyRing, *, per_minute: int = 1000, clock: Clock | None = None) -> None:
        self.ring = ring
        self.looked_up = 0
        self.raises: Exception | None = None
        self.waits: asyncio.Event | None = None  # of all requests, for the end of a wait
        self.clock = clock or Clock()
        self._per_minute = per_minute

    async def _find(self, name: str) -> Key | None:
        self.looked_up += 1
        return self.ring.find(name)

    async def _names(self) -> list[str]:
        return self.ring.names()

    async def _handle(self, request: web.Request) -> web.Response:
        if self.waits is not None:
            await self.waits.wait()
        if self.raises is not None:
            raise self.raises
        return web.json_response({"caller": request[CALLER].name if CALLER in request else None})

    def app(self) -> web.Application:
        known = KnownKeys(self._find, self._names, monotonic=self.clock)
        callers = Callers(known.of_token, self._per_minute, 4, monotonic=self.clock)
        middlewares = [guards.answering(), guards.hosts(["door.example"]), guards.keys(callers)]
        app = web.Application(middlewares=middlewares, client_max_size=1000)
        app.on_response_prepare.append(guards.complete_head)
        for path in ("/v1/thing", "/healthz"):
            app.router.add_get(path, self._handle)
        app.router.add_post("/v1/body", self._read)
        return app

    async def _read(self, request: web.Request) -> web.Response:
        return web.json_response({"length": len(await request.read())})


def ask(door: Door, *asked: tuple[str, dict[str, str]]) -> list[Answer]:
    """The answers to some requests of one connection."""

    async def all_of_them() -> list[Answer]:
        async with TestClient(TestServer(door.app())) as client:
            found = []
            for path, headers in asked:
                async with client.get(path, headers=headers) as response:
                    found.append((response.status, await response.json(), response.headers.copy()))
            return found

    return asyncio.run(all_of_them())


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_a_key_opens_and_is_looked_up_once_in_a_while(ring: KeyRing) -> None:
    door, token = Door(ring), ring.add("nightly")

    answers = ask(door, *[("/v1/thing", bearer(token))] * 3)

    assert [(status, body) for status, body, _ in answers] == [(200, {"caller": "nightly"})] * 3
    assert door.looked_up == 1


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ({}, 401),
        ({"Authorization": ""}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": "Bearer cf-nightly-" + "0" * 64}, 401),
        ({"Authorization": "Basic bmlnaHRseTp4"}, 401),
        ({"api-key": "cf-nightly-" + "0" * 64}, 401),
    ],
)
def test_no_key_no_answer(ring: KeyRing, header: dict[str, str], status: int) -> None:
    ring.add("nightly")

    (answer,) = ask(Door(ring), ("/v1/thing", header))

    assert answer[0] == status
    assert set(answer[1]["error"]) == {"message", "type", "param", "code"}
    assert answer[1]["error"]["code"] == "invalid_api_key"
    assert answer[2]["x-request-id"].startswith("req_")


def test_an_unknown_path_does_not_say_so_without_a_key(ring: KeyRing) -> None:
    token = ring.add("nightly")

    without, with_key = ask(Door(ring), ("/v1/nothing", {}), ("/v1/nothing", bearer(token)))

    assert (without[0], with_key[0]) == (401, 404)
    assert with_key[1]["error"]["code"] == "unknown_url"


def test_a_wrong_path_or_method_says_which_there_are(ring: KeyRing) -> None:
    token = bearer(ring.add("nightly"))

    path, method = ask(Door(ring), ("/embeddings", token), ("/v1/body", token))

    assert (
        path[1]["error"]["message"]
        == "There is no /embeddings: /openapi.json lists all paths, such as /v1/embeddings"
    )
    assert (method[0], method[2]["Allow"]) == (405, "POST")
    assert method[1]["error"]["message"] == "/v1/body takes POST, not GET"


def test_a_model_that_is_not_served_says_which_are() -> None:
    assert (
        model_not_found("dmeo", ["demo", "a"]).message == "No worker serves the model 'dmeo'; served: a, demo"
    )
    assert model_not_found("demo", []).message == "No worker serves the model 'demo'; served: none"


def test_health_needs_no_key(ring: KeyRing) -> None:
    assert ask(Door(ring), ("/healthz", {}))[0][0] == 200


@pytest.mark.parametrize(
    "host", ["door.example", "DOOR.example:8080", "127.0.0.1:1", "[::1]:80", "localhost"]
)
def test_hosts_of_this_gateway(ring: KeyRing, host: str) -> None:
    token = ring.add("nightly")

    assert ask(Door(ring), ("/v1/thing", {**bearer(token), "Host": host}))[0][0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "door.example.evil", "127.0.0.1.evil.example", "door.example@x"]
)
def test_other_hosts_are_refused_even_with_a_key(ring: KeyRing, host: str) -> None:
    token = ring.add("nightly")

    (answer,) = ask(Door(ring), ("/v1/thing", {**bearer(token), "Host": host}))

    assert (answer[0], answer[1]["error"]["code"]) == (421, "unknown_host")


def test_a_revoked_key_opens_for_seconds_at_most(ring: KeyRing) -> None:
    door, token = Door(ring), ring.add("nightly")

    async def revoked_meanwhile() -> list[int]:
        async with TestClient(TestServer(door.app())) as client:
            found = []
            for seconds in (0.0, 4.9, 0.2):
                door.clock.now += seconds
                async with client.get("/v1/thing", headers=bearer(token)) as response:
                    found.append(response.status)
                ring.revoke("nightly")
            return found

    assert asyncio.run(revoked_meanwhile()) == [200, 200, 401]


def test_a_key_may_ask_so_often_in_a_minute(ring: KeyRing) -> None:
    door = Door(ring, per_minute=3)
    mine, other = bearer(ring.add("mine")), bearer(ring.add("other"))

    answers = ask(door, *[("/v1/thing", mine)] * 4, ("/v1/thing", other))

    assert [status for status, *_ in answers] == [200, 200, 200, 429, 200]
    assert (answers[3][1]["error"]["code"], answers[3][2]["Retry-After"]) == ("rate_limit_exceeded", "20")


@pytest.mark.parametrize(
    ("raised", "status", "code", "words"),
    [
        (invalid("input[3] is no image", "input[3]"), 400, None, "input[3] is no image"),
        (UsageError("name a model"), 400, None, "name a model"),
        (JobNotFoundError("night"), 404, "not_found", "No such job"),
        (QuotaExceededError("too much waits"), 429, "quota_exceeded", "too much waits"),
        (RedisUnavailableError("redis://secret:6379 is away"), 503, "unavailable", "try again"),
        (ZeroDivisionError("secret"), 500, None, "Internal error, see req_"),
    ],
)
def test_errors_have_four_keys_and_say_nothing_of_the_inside(
    ring: KeyRing, raised: Exception, status: int, code: str | None, words: str
) -> None:
    door, token = Door(ring), ring.add("nightly")
    door.raises = raised

    (answer,) = ask(door, ("/v1/thing", bearer(token)))

    error = answer[1]["error"]
    assert (answer[0], error["code"]) == (status, code)
    assert words in error["message"] and "secret" not in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert ("Retry-After" in answer[2]) == (status in (429, 503))


def test_a_body_that_is_too_large(ring: KeyRing) -> None:
    door, token = Door(ring), ring.add("nightly")

    async def post() -> tuple[int, Any]:
        async with (
            TestClient(TestServer(door.app())) as client,
            client.post("/v1/body", headers=bearer(token), data=b"x" * 2000) as response,
        ):
            return response.status, (await response.json())["error"]["code"]

    assert asyncio.run(post()) == (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body_too_large")


def test_tokens_name_their_key() -> None:
    secret = new_secret()

    assert split_token(token_of("a-b-c", secret)) == ("a-b-c", secret)


def test_a_key_has_so_many_requests_at_a_time(ring: KeyRing) -> None:
    door, token, other = Door(ring), ring.add("mine"), ring.add("other")
    door.waits = asyncio.Event()

    async def all_at_once() -> list[int]:
        async with TestClient(TestServer(door.app())) as client:

            async def status(token: str) -> int:
                async with client.get("/v1/thing", headers=bearer(token)) as response:
                    return response.status

            asked = [asyncio.create_task(status(token)) for _ in range(5)]
            refused, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            assert door.waits is not None
            door.waits.set()
            return [*(task.result() for task in refused), await status(other), *await asyncio.gather(*asked)]

    assert sorted(asyncio.run(all_at_once())) == [200] * 5 + [429] * 2
