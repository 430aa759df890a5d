"""Moderations, decisions and verdicts over a real server, with a double of the worker that decides."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clipfleet.ledger.events.outbox import Outbox
from clipfleet.moderation.policy_files import PolicyFile
from clipfleet_gateway.services import Services
from tests.support.door_worker import BAD, OURS, DoorWorker
from tests.support.endpoints import add_endpoint
from tests.support.gateway_app import Asking, asking, gateway_services
from tests.support.policies import make_policy, of_label, rule

Answer = tuple[int, Any]
URL = "https://example.com/a.jpg"
# The double gives the labels 0.5, 0.25, ... in alphabetical order.
FLAGS_CATS = make_policy(rule("flag", of_label("cat"), name="cats"), name="uploads")
ALLOWS = make_policy(rule("flag", of_label("dog")), name="lenient")


@pytest.fixture
def services(tmp_path: Path, redis_url: str) -> Iterator[Services]:
    with gateway_services(str(tmp_path / "gateway"), redis_url) as services:
        yield services


@pytest.fixture
def worker(redis_url: str) -> Iterator[DoorWorker]:
    with DoorWorker(redis_url) as worker:
        yield worker


def ask(services: Services, run: Callable[..., Awaitable[Any]], *names: str, **options: Any) -> Any:
    """What `run` returns, with a client for each name of a key."""
    tokens = [services.keys.add(name, **options) for name in names or ("mine",)]

    async def inside() -> Any:
        async with asking(services, tokens[0]) as client:
            if len(tokens) == 1:
                return await run(client)
            async with asking(services, tokens[1]) as other:
                return await run(client, other)

    return asyncio.run(inside())


async def sent(client: Asking, path: str, body: Any = None) -> Answer:
    async with client.request("GET" if body is None else "POST", path, json=body) as response:
        return response.status, await response.json()


def part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def data_uri(data: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


async def moderate(client: Asking, url: str = URL, model: str | None = "uploads") -> Answer:
    return await sent(client, "/v1/moderations", {"model": model, "input": [part(url)]})


def test_an_answer_has_openais_keys_and_the_evidence(services: Services, worker: DoorWorker) -> None:
    services.policies.add(PolicyFile(FLAGS_CATS))

    status, body = ask(services, moderate)

    assert (status, body["model"], set(body)) == (200, "uploads", {"id", "model", "results"})
    (result,) = body["results"]
    assert body["id"] == "modr-" + result["decision_id"].removeprefix("dec-")
    assert (result["flagged"], result["decision"], result["error"]) == (True, "flag", None)
    assert result["categories"] == {"cat": True, "dog": False}
    assert result["category_scores"] == {"cat": 0.5, "dog": 0.25}
    assert result["category_applied_input_types"] == {"cat": ["image"], "dog": ["image"]}
    assert result["reasons"] == [
        {
            "rule": "cats", "action": "flag", "label_set": "things", "head": None, "label": "cat",
            "score": 0.5, "threshold": 0.5, "test": "at_least", "threshold_source": "default",
        }
    ]  # fmt: skip


def test_only_allow_is_not_flagged(services: Services, worker: DoorWorker) -> None:
    services.policies.add(PolicyFile(ALLOWS))

    status, body = ask(services, lambda client: moderate(client, model=None))

    assert (status, body["results"][0]["flagged"], body["results"][0]["decision"]) == (200, False, "allow")


@pytest.mark.parametrize(("given", "code"), [(BAD, "not_an_image"), (OURS, "out_of_memory")])
def test_an_image_that_cannot_be_judged_is_undecided_and_flagged(
    services: Services, worker: DoorWorker, given: bytes, code: str
) -> None:
    services.policies.add(PolicyFile(ALLOWS))

    status, body = ask(services, lambda client: moderate(client, data_uri(given), "lenient"))

    (result,) = body["results"]
    assert (status, result["flagged"], result["decision"]) == (200, True, "undecided")
    assert result["error"] == {"code": code, "detail": "no image format"}
    assert result["category_scores"] == {"cat": None, "dog": None}
    assert set(result["categories"].values()) == {False}


def test_keys_never_share_a_job(services: Services, worker: DoorWorker) -> None:
    services.policies.add(PolicyFile(FLAGS_CATS))

    async def run(one: Asking, other: Asking) -> list[Answer]:
        return await asyncio.gather(*(moderate(client) for client in (one, other) for _ in range(5)))

    answers = ask(services, run, "mine", "other")

    assert [status for status, _ in answers] == [200] * 10
    owners = {job.decisions.owner for job, _ in worker.jobs if job.decisions}
    assert owners == {"mine", "other"}
    assert sum(count for _, count in worker.jobs) == 10


def test_a_decision_is_explained_to_its_key_only_and_takes_verdicts(
    services: Services, worker: DoorWorker
) -> None:
    stored, _ = services.policies.add(PolicyFile(FLAGS_CATS))

    async def run(one: Asking, other: Asking) -> None:
        _, body = await moderate(one)
        path = f"/v1/decisions/{body['results'][0]['decision_id']}"
        status, found = await sent(one, path)
        assert (status, found["status"], found["uri"], found["owner"]) == (200, "flag", URL, "mine")
        assert found["policy"]["sha256"] == stored.sha256
        assert found["policy"]["label_sets"][0]["labels"] == ["cat", "dog"]
        assert (found["scores"], found["verdicts"]) == ({"things": {"cat": 0.5, "dog": 0.25}}, [])
        for client, where in ((other, path), (one, path[:-1] + "99"), (one, "/v1/decisions/nonsense")):
            assert (await sent(client, where))[0] == 404
            assert (await sent(client, f"{where}/verdict", {"verdict": "upheld"}))[0] == 404

        status, verdict = await sent(one, f"{path}/verdict", {"verdict": "overturned", "by": "ann"})
        assert (status, verdict["marks"], verdict["by"]) == (200, {"things/cat": "no"}, "ann")
        appeal = {"verdict": "upheld", "labels": {"dog": "skip"}, "appeal": True, "note": "a lion"}
        status, verdict = await sent(one, f"{path}/verdict", appeal)
        assert (status, verdict["is_appeal"]) == (200, True)
        assert verdict["marks"] == {"things/cat": "yes", "things/dog": "skip"}
        _, found = await sent(one, path)
        assert [one["verdict"] for one in found["verdicts"]] == ["overturned", "upheld"]
        for wrong in ({}, {"verdict": "maybe"}, {"verdict": "upheld", "labels": {"cow": "yes"}}):
            assert (await sent(one, f"{path}/verdict", wrong))[0] == 400

    ask(services, run, "mine", "other")


@pytest.mark.parametrize(
    "given",
    [
        "a text", ["a text", "another"], [{"type": "text", "text": "a text"}], [], None, 5, {},
        [part(URL)] * 2,
        {"type": "image_url"}, part(""), [[part(URL)]], [part(URL), {"type": "text", "text": "with it"}],
    ],
)  # fmt: skip
def test_text_and_other_things_are_refused(services: Services, given: Any) -> None:
    services.policies.add(PolicyFile(FLAGS_CATS))

    async def run(client: Asking) -> Answer:
        return await sent(client, "/v1/moderations", {"model": "uploads", "input": given})

    status, body = ask(services, run)

    assert (status, body["error"]["type"]) == (400, "invalid_request_error")
    assert body["error"]["param"].startswith("input")


def test_what_is_named_must_be_there_and_readable(services: Services, worker: DoorWorker) -> None:
    services.policies.add(PolicyFile(FLAGS_CATS))

    async def run(client: Asking) -> list[tuple[int, str]]:
        found = [await moderate(client, url) for url in ("file-none", "s3://photos/a.jpg", "/etc/passwd")]
        found.append(await moderate(client, model="none"))
        return [(status, body["error"]["param"]) for status, body in found]

    assert ask(services, run) == [(404, "input[0]"), (403, "input[0]"), (403, "input[0]"), (404, "model")]
    assert not worker.jobs


def test_a_model_that_no_worker_serves_is_away(services: Services, worker: DoorWorker) -> None:
    services.policies.add(PolicyFile(make_policy(model="ViT-L-14:openai")))

    status, body = ask(services, moderate)

    assert (status, body["error"]["code"]) == (503, "unavailable")


def test_policies_are_models(services: Services, worker: DoorWorker) -> None:
    services.policies.add(PolicyFile(FLAGS_CATS))

    async def run(client: Asking) -> list[Answer]:
        return [await sent(client, path) for path in ("/v1/models", "/v1/models/uploads", "/v1/models/x")]

    (_, listed), (_, one), (status, _) = ask(services, run)

    assert [(model["id"], model["owned_by"]) for model in listed["data"]] == [
        ("demo", "clipfleet"), ("uploads", "policy"),
    ]  # fmt: skip
    assert (one, status) == (listed["data"][1], 404)


def test_a_decision_is_announced_once(services: Services, worker: DoorWorker, redis_url: str) -> None:
    services.policies.add(PolicyFile(FLAGS_CATS))
    outbox = Outbox(redis_url)
    try:
        add_endpoint(outbox, "https://example.com/hook")
        _, body = ask(services, moderate)
        (event,) = outbox.claim("token", 10, 60.0)
    finally:
        outbox.close()

    assert (event.type, event.event_id) == ("decision.flag", "evt-" + body["results"][0]["decision_id"])
    assert json.loads(event.data)["uri"] == URL
