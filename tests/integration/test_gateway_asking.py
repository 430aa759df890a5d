"""Requests that wait for their answer, over a real server: shared jobs, failures, cancels, bounds."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from pydantic import SecretStr

from clipfleet.client import Client
from clipfleet.contract.jobs import Lane
from clipfleet.errors import JobNotFoundError
from clipfleet.hints import Hints
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import Ledger
from clipfleet.settings import Settings
from clipfleet_gateway.asking import asker, room
from clipfleet_gateway.files.record import Purpose
from clipfleet_gateway.services import Services
from tests.support.door_worker import BAD, OURS, DoorWorker, vector_of
from tests.support.gateway_app import Asking, asking, gateway_services
from tests.support.waiting import wait_until

Answer = tuple[int, Any]
_PATIENCE_SECONDS = 30


@pytest.fixture
def services(tmp_path: Path, redis_url: str) -> Iterator[Services]:
    with gateway_services(str(tmp_path / "gateway"), redis_url) as services:
        yield services


@pytest.fixture
def worker(redis_url: str) -> Iterator[DoorWorker]:
    with DoorWorker(redis_url) as worker:
        yield worker


def ask(services: Services, run: Callable[[Asking], Awaitable[Any]], **options: Any) -> Any:
    """What `run` returns, with a client of a gateway that sends a new key."""
    token = services.keys.add("mine", **options)

    async def inside() -> Any:
        async with asking(services, token) as client:
            return await run(client)

    return asyncio.run(inside())


async def post(client: Asking, path: str, body: Any) -> Answer:
    async with client.post(path, json=body) as response:
        return response.status, await response.json()


def embedding(given: Any, **more: Any) -> dict[str, Any]:
    return {"model": "demo", "input": given, **more}


def image(data: bytes) -> dict[str, str]:
    return {"image": base64.b64encode(data).decode()}


async def embed(client: Asking, given: Any, **more: Any) -> Answer:
    return await post(client, "/v1/embeddings", embedding(given, **more))


def vectors(body: Any) -> list[list[float]]:
    return [one["embedding"] for one in body["data"]]


def wanted(*inputs: str | bytes) -> list[list[float]]:
    return [vector_of(one).astype(float).tolist() for one in inputs]


def test_requests_that_come_together_share_a_job_and_get_what_is_theirs(
    services: Services, worker: DoorWorker
) -> None:
    async def run(client: Asking) -> list[Answer]:
        await embed(client, "first")  # opens the connections
        worker.jobs.clear()
        return await asyncio.gather(
            *(embed(client, [image(b"a%d" % number), image(b"b%d" % number)]) for number in range(20))
        )

    answers = ask(services, run)

    assert [status for status, _ in answers] == [200] * 20
    for number, (_, body) in enumerate(answers):
        assert vectors(body) == wanted(b"a%d" % number, b"b%d" % number)
        assert [one["index"] for one in body["data"]] == [0, 1]
    assert len(worker.jobs) < 20
    assert sum(count for _, count in worker.jobs) == 40
    assert {job.lane for job, _ in worker.jobs} == {Lane.HIGH}


def test_texts_images_and_urls_of_one_request_keep_their_order(
    services: Services, worker: DoorWorker
) -> None:
    given = ["a cat", image(b"1"), {"image": "https://example.com/a.jpg"}, "a dog", image(b"2")]

    status, body = ask(services, lambda client: embed(client, given))

    assert status == 200
    assert vectors(body) == wanted("a cat", b"1", "https://example.com/a.jpg", "a dog", b"2")


def test_base64_is_little_endian_float32(services: Services, worker: DoorWorker) -> None:
    status, body = ask(services, lambda client: embed(client, image(b"1"), encoding_format="base64"))

    (coded,) = vectors(body)
    assert status == 200
    assert isinstance(coded, str)
    assert np.frombuffer(base64.b64decode(coded), "<f4").tolist() == wanted(b"1")[0]


def test_a_large_request_has_a_job_of_its_own(services: Services, worker: DoorWorker) -> None:
    given = [f"text {number}" for number in range(300)]

    async def run(client: Asking) -> list[Answer]:
        return await asyncio.gather(embed(client, given), embed(client, "one"))

    large, small = ask(services, run)

    assert vectors(large[1]) == wanted(*given)
    assert vectors(small[1]) == wanted("one")


def test_labels_are_scored(services: Services, worker: DoorWorker) -> None:
    async def run(client: Asking) -> list[Answer]:
        labels = ["dog", "cat"], ["dog", "cat"], ["owl", "bat", "cow"]
        return await asyncio.gather(
            *(
                post(
                    client,
                    "/v1/zero-shot",
                    {"inputs": image(b"1")["image"], "parameters": {"candidate_labels": some}},
                )
                for some in labels
            )
        )

    first, second, third = ask(services, run)

    assert first == second == (200, [{"label": "cat", "score": 0.5}, {"label": "dog", "score": 0.25}])
    assert [one["label"] for one in third[1]] == ["bat", "cow", "owl"]


def test_a_bad_input_fails_its_request_alone(services: Services, worker: DoorWorker) -> None:
    async def run(client: Asking) -> list[Answer]:
        given = [image(b"1")], [image(b"2"), image(BAD)], image(OURS), image(b"3")
        return await asyncio.gather(*(embed(client, one) for one in given))

    good, bad, ours, last = ask(services, run)

    assert (good[0], last[0]) == (200, 200)
    assert vectors(last[1]) == wanted(b"3")
    assert bad[0] == 400
    assert bad[1]["error"]["param"] == "input[1]"
    assert bad[1]["error"]["code"] == "not_an_image"
    assert "input[1]: not an image: no image format" in bad[1]["error"]["message"]
    assert ours[0] == 503


def test_a_slow_host_delays_no_other_request(services: Services, worker: DoorWorker) -> None:
    worker.slow.add("slow.example")

    async def run(client: Asking) -> list[Answer]:
        slow = asyncio.create_task(embed(client, {"image": "https://slow.example/a.jpg"}))
        others = await asyncio.gather(
            embed(client, {"image": "https://example.com/a.jpg"}),
            embed(client, image(b"1")),
            embed(client, "x"),
        )
        assert not slow.done()
        worker.slow.clear()
        return [*others, await slow]

    assert [status for status, _ in ask(services, run)] == [200] * 4


def test_a_client_that_hangs_up_cancels_its_share(
    services: Services, worker: DoorWorker, ledger: Ledger
) -> None:
    worker.resting.set()

    async def run(client: Asking) -> None:
        gone = [asyncio.create_task(embed(client, {"image": f"https://gone/{one}.jpg"})) for one in "ab"]
        stays = asyncio.create_task(embed(client, image(b"1")))
        while len(ledger.jobs()) < 2:
            await asyncio.sleep(0.01)
        for task in gone:
            task.cancel()
        while not any(job.state == "cancelled" for job in ledger.jobs()):
            await asyncio.sleep(0.01)
        worker.resting.clear()
        assert (await stays)[0] == 200

    ask(services, run)

    assert sorted(job.state.value for job in ledger.jobs()) == ["cancelled", "completed"]


def test_nothing_of_a_request_outlives_a_minute(
    services: Services, worker: DoorWorker, redis_client: redis.Redis, ledger: Ledger
) -> None:
    async def run(client: Asking) -> None:
        for number in range(10):
            await asyncio.gather(embed(client, image(b"%d" % number)), embed(client, image(BAD)))

    ask(services, run)

    names = [str(name) for name in redis_client.scan_iter("clipfleet:{door-*")]
    assert names
    assert all(0 < redis_client.pttl(name) <= 60_000 for name in names)
    assert {job.job_id[:5] for job in ledger.jobs()} == {"door-"}
    client = Client(Settings(redis_url=SecretStr(services.settings.require_redis_url())))
    with client, pytest.raises(JobNotFoundError):
        client.last()


def test_a_model_that_nobody_serves(services: Services, worker: DoorWorker) -> None:
    status, body = ask(services, lambda client: embed(client, "x", model="ViT-L-14:openai"))

    assert (status, body["error"]["code"], body["error"]["param"]) == (404, "model_not_found", "model")
    assert "demo" in body["error"]["message"]


def test_while_workers_are_away_a_request_waits_and_then_comes_again(
    services: Services, redis_url: str, monkeypatch: pytest.MonkeyPatch, ledger: Ledger
) -> None:
    monkeypatch.setattr(asker, "_AWAY_SECONDS", 0.3)
    monkeypatch.setattr(asker, "_LOOK_SECONDS", 0.05)

    async def run(client: Asking) -> tuple[int, str, Any]:
        async with client.post("/v1/embeddings", json=embedding("x")) as response:
            return response.status, response.headers["Retry-After"], await response.json()

    status, retry_after, body = ask(services, run)

    assert (status, body["error"]["code"]) == (503, "unavailable")
    assert int(retry_after) > 0
    assert [job.state for job in ledger.jobs()] == ["cancelled"]


def test_a_worker_that_comes_late_answers(services: Services, redis_url: str, ledger: Ledger) -> None:
    async def run(client: Asking) -> Answer:
        asked = asyncio.create_task(embed(client, "x"))
        while not ledger.jobs():
            await asyncio.sleep(0.01)
        with DoorWorker(redis_url):
            return await asked

    assert ask(services, run)[0] == 200


def test_an_end_that_was_missed_is_found(
    services: Services, worker: DoorWorker, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asker, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(Ledger, "wait_for_ends", lambda _self, after, _seconds: (after, []))

    assert ask(services, lambda client: embed(client, "x"))[0] == 200


def test_too_many_inputs_at_a_time(
    services: Services, worker: DoorWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asker, "MOST_WAITING_INPUTS", 3)
    worker.resting.set()

    async def run(client: Asking) -> list[Answer]:
        waiting = asyncio.create_task(embed(client, ["a", "b"]))
        while services.client.jobs() == []:
            await asyncio.sleep(0.01)
        refused = await embed(client, ["c", "d"])
        worker.resting.clear()
        return [refused, await waiting, await embed(client, ["e", "f", "g", "h"])]

    refused, waited, alone = ask(services, run)

    assert (refused[0], refused[1]["error"]["code"]) == (429, "overloaded")
    assert (waited[0], alone[0]) == (200, 200)


def test_inputs_are_counted(services: Services, worker: DoorWorker) -> None:
    async def run(client: Asking) -> list[Answer]:
        return [await embed(client, ["a", "b"]), await embed(client, ["c", "d"]), await embed(client, "e")]

    answers = ask(services, run, quota=3)

    assert [status for status, _ in answers] == [200, 429, 200]
    assert answers[1][1]["error"]["code"] == "quota_exceeded"


def test_what_is_refused_is_not_counted(
    services: Services, worker: DoorWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MOST_REQUEST_BYTES", 10)

    async def run(client: Asking) -> list[Answer]:
        refused = [await embed(client, ["a", "b"], model="other"), await embed(client, image(b"1" * 11))]
        return [*refused, await embed(client, ["a", "b"])]

    unknown, large, served = ask(services, run, quota=2)

    assert (unknown[0], large[0], served[0]) == (404, 413, 200)
    assert large[1]["error"]["code"] == "inputs_too_large"


def test_an_own_file_that_is_named_often_is_read_once_and_counts_each_time(
    services: Services, worker: DoorWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MOST_REQUEST_BYTES", 10)
    received = services.files.receive()
    received.write(b"12345")
    mine = services.files.save("mine", received, filename="a.jpg", purpose=Purpose.USER_DATA).id
    received.close()
    read, ids = services.files.read, []

    def watched(owner: str, file_id: str) -> bytes | None:
        ids.append(file_id)
        return read(owner, file_id)

    monkeypatch.setattr(services.files, "read", watched)

    async def run(client: Asking) -> list[Answer]:
        return [await embed(client, [{"image": mine}] * times) for times in (3, 2)]

    refused, found = ask(services, run)

    assert (refused[0], refused[1]["error"]["code"]) == (413, "inputs_too_large")
    assert vectors(found[1]) == wanted(b"12345", b"12345")
    assert ids == [mine]


def test_own_files_are_images(services: Services, worker: DoorWorker) -> None:
    def saved(owner: str) -> str:
        received = services.files.receive()
        try:
            received.write(b"1")
            return services.files.save(owner, received, filename="a.jpg", purpose=Purpose.USER_DATA).id
        finally:
            received.close()

    mine, other = saved("mine"), saved("other")

    async def run(client: Asking) -> list[Answer]:
        return [await embed(client, {"image": one}) for one in (mine, other)]

    found, not_mine = ask(services, run)

    assert vectors(found[1]) == wanted(b"1")
    assert (not_mine[0], not_mine[1]["error"]["param"]) == (404, "input")


def test_what_is_no_json(services: Services) -> None:
    async def run(client: Asking) -> list[int]:
        found = []
        for headers in ({"Content-Type": "image/jpeg"}, {"Content-Type": "application/json"}):
            async with client.post("/v1/zero-shot", data=b"\xff\xd8", headers=headers) as response:
                found.append(response.status)
        return found

    assert ask(services, run) == [415, 400]


def test_jobs_whose_rows_are_lost_are_not_waited_for(
    services: Services, worker: DoorWorker, redis_client: redis.Redis, ledger: Ledger
) -> None:
    worker.resting.set()

    async def run(client: Asking) -> Answer:
        asked = asyncio.create_task(embed(client, "x"))
        while not (jobs := ledger.jobs()):
            await asyncio.sleep(0.01)
        ledger.cancel(jobs[0].job_id, ttl_seconds=60)
        return await asked

    status, body = ask(services, run)

    assert status == 503
    assert "try again" in body["error"]["message"]
    wait_until(lambda: redis_client.zcard(keys.LEASES) == 0, "nothing is leased")


def test_no_request_waits_for_a_broker_that_does_not_answer(
    services: Services, worker: DoorWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()

    def publish(_: Hints, count: int = 1) -> None:
        answers.wait(_PATIENCE_SECONDS)

    monkeypatch.setattr(Hints, "publish_work", publish)

    async def run(client: Asking) -> list[Answer]:
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await asyncio.gather(*(embed(client, image(b"%d" % number)) for number in range(50)))
        finally:
            answers.set()

    assert {status for status, _ in ask(services, run)} == {200}
