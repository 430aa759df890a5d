"""How much of all bodies is held at a time: only what has arrived, and a share of it for each key."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web

from clipfleet_gateway.errors import ApiError
from clipfleet_gateway.web.received import held_bodies
from clipfleet_gateway.web.received.held_bodies import HeldBodies, HeldBody
from tests.support.gateway_app import asking, gateway_services

SMALL, SHARE, MOST = 10, 40, 100
BATCH = {"input_file_id": "file-x", "endpoint": "/v1/embeddings", "completion_window": "24h"}


class Sent:
    """A request whose body arrives in pieces of these sizes."""

    def __init__(self, *sizes: int) -> None:
        self._pieces = [b"x" * size for size in sizes]
        self.content, self.content_length = self, None

    async def readany(self) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> HeldBodies:
    monkeypatch.setattr(held_bodies, "_SMALL_BYTES", SMALL)
    monkeypatch.setattr(held_bodies, "_SHARE_BYTES", SHARE)
    monkeypatch.setattr(held_bodies, "_MOST_BYTES", MOST)
    return HeldBodies()


def read(held: HeldBodies, owner: str, *sizes: int) -> HeldBody:
    body = held.begin(owner)
    data = asyncio.run(body.read(cast(web.Request, Sent(*sizes)), SHARE))
    assert data == b"x" * sum(sizes)
    return body


def status(held: HeldBodies, owner: str, *sizes: int) -> int:
    body = held.begin(owner)
    try:
        asyncio.run(body.read(cast(web.Request, Sent(*sizes)), SHARE))
    except ApiError as error:
        return int(error.status)
    finally:
        body.close()
    return 200


def test_a_key_has_a_share(held: HeldBodies) -> None:
    first = read(held, "a", 9, 9, 9)

    assert status(held, "a", 9, 9) == 429
    assert status(held, "b", 9, 9) == 200
    first.close()
    first.close()
    assert status(held, "a", *[8] * 5) == 200


def test_large_bodies_of_others_let_small_ones_through(held: HeldBodies) -> None:
    for owner in ("a", "b"):
        read(held, owner, 20, 20)
    read(held, "c", 20)

    assert status(held, "d", 20) == 503
    assert status(held, "d", 9) == status(held, "a", 9) == 200


def test_small_bodies_have_a_bound_of_their_own(held: HeldBodies) -> None:
    for _ in range(4):
        read(held, "a", 10)

    assert status(held, "a", 5) == 429
    assert status(held, "a", 20) == status(held, "b", 5) == 200


def test_one_body_has_its_bound(held: HeldBodies) -> None:
    assert status(held, "a", 41) == status(held, "a", 20, 21) == 413
    assert status(held, "a", 40) == 200


def test_open_bodies_of_a_key_keep_no_other_from_asking(tmp_path: Path) -> None:
    async def inside(mine: str, other: str) -> int:
        async with asking(services, other) as client:
            writers = []
            for _ in range(6):
                _, writer = await asyncio.open_connection(client.host, client.port)
                writers.append(writer)
                writer.write(
                    b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
                    b"Authorization: Bearer %b\r\n\r\n1\r\n{\r\n" % mine.encode()
                )
            async with asyncio.timeout(30):
                while len(cast(Any, client.server).handler.connections) < len(writers):
                    await asyncio.sleep(0)
            async with client.post("/v1/batches", json=BATCH) as response:
                found = response.status
            for writer in writers:
                writer.close()
            return found

    with gateway_services(str(tmp_path / "gateway")) as services:
        assert asyncio.run(inside(services.keys.add("mine"), services.keys.add("other"))) == 404
