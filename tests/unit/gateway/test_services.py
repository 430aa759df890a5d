"""Calls that block: those of one kind never wait behind those of another, and few outlive a signal."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from clipfleet.errors import OutputUnreachableError
from clipfleet.ledger.jobs import Ledger
from clipfleet.outputs.folder import FolderOutput
from clipfleet_gateway.asking import asker
from clipfleet_gateway.batches.record import BatchRecord
from clipfleet_gateway.batches.store import BatchStore
from clipfleet_gateway.shapes.batches import Endpoint
from clipfleet_gateway.web.about import health
from tests.support.gateway_app import Asking, asking, gateway_services

_PATIENCE_SECONDS = 30
_THREADS = 32  # for one kind of calls
_MANY = 64  # requests
TEXT = {"model": "demo", "input": "x"}


class Stuck:
    """Calls that block until the test ends them."""

    def __init__(self, returns: object = None) -> None:
        self.begun = 0
        self._returns = returns
        self.may_end = threading.Event()

    def __call__(self, *_: object, **__: object) -> Any:
        self.begun += 1
        assert self.may_end.wait(_PATIENCE_SECONDS)
        return self._returns

    async def have_begun(self, count: int) -> None:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while self.begun < count:
                await asyncio.sleep(0.01)


async def answer(client: Asking, method: str, path: str, **sent: Any) -> tuple[int, Any]:
    async with asyncio.timeout(_PATIENCE_SECONDS), client.request(method, path, **sent) as response:
        return response.status, await response.json()


@asynccontextmanager
async def many(client: Asking, path: str, calls: Stuck, begun: int) -> AsyncIterator[None]:
    """While many requests for a path are stuck, in so many calls."""
    tasks = [asyncio.create_task(answer(client, "GET", path)) for _ in range(_MANY)]
    try:
        await calls.have_begun(begun)
        yield
    finally:
        calls.may_end.set()
        await asyncio.gather(*tasks, return_exceptions=True)


def with_gateway(
    tmp_path: Path, run: Callable[[Asking, dict[str, str]], Awaitable[None]], **doubles: Stuck
) -> None:
    """Ask a gateway without Redis, some of whose calls are stuck; with the headers of a second key."""
    with gateway_services(str(tmp_path / "gateway")) as services:
        token, other = services.keys.add("mine"), services.keys.add("other")

        async def inside() -> None:
            async with asking(services, token) as client:
                await run(client, {"Authorization": f"Bearer {other}"})

        with pytest.MonkeyPatch.context() as patch:
            for name, calls in doubles.items():
                where, _, function = name.partition("_")
                patch.setattr(type(getattr(services, where)), function, calls)
            asyncio.run(inside())


def test_slow_files_keep_only_files_waiting(tmp_path: Path) -> None:
    calls = Stuck(((), False))

    async def run(client: Asking, other: dict[str, str]) -> None:
        async with many(client, "/v1/files", calls, _THREADS):
            for method, path, sent in (
                ("POST", "/v1/embeddings", {"json": TEXT}),
                ("GET", "/v1/models", {}),
            ):
                status, body = await answer(client, method, path, headers=other, **sent)
                assert (status, body["error"]["code"]) == (503, "unavailable"), "as there is no Redis"
            _, ready = await answer(client, "GET", "/readyz")
            assert (ready["redis"], ready["place"]) == ("RedisUnavailableError", "ok")

    with_gateway(tmp_path, run, files_listed=calls)


def test_a_redis_that_hangs_is_looked_at_once_and_keeps_no_files_waiting(tmp_path: Path) -> None:
    calls = Stuck([])

    async def run(client: Asking, other: dict[str, str]) -> None:
        async with many(client, "/v1/models", calls, 1):
            status, body = await answer(client, "GET", "/v1/files", headers=other)
            assert (status, body["data"]) == (200, [])
            assert calls.begun == 1

    with_gateway(tmp_path, run, client_workers=calls)


def test_calls_that_wait_for_a_thread_end_with_the_gateway(tmp_path: Path) -> None:
    calls = Stuck()

    async def run() -> None:
        with gateway_services(str(tmp_path / "gateway")) as services:
            tasks = [asyncio.create_task(services.call(calls)) for _ in range(_MANY)]
            await calls.have_begun(_THREADS)
            closing = asyncio.create_task(asyncio.to_thread(services.__exit__))
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(tasks[-1], _PATIENCE_SECONDS)
            calls.may_end.set()
            await closing
            await asyncio.wait(tasks)

    asyncio.run(run())
    assert calls.begun == _THREADS


def test_a_time_limit_holds_for_all_that_a_request_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, workers = Stuck("0-0"), Stuck([])
    workers.may_end.set()
    monkeypatch.setattr(asker, "ANSWER_SECONDS", 0.01)
    monkeypatch.setattr(Ledger, "last_end", stuck)

    async def run(client: Asking, _: dict[str, str]) -> None:
        try:
            status, body = await answer(client, "POST", "/v1/embeddings", json=TEXT)
        finally:
            stuck.may_end.set()
        assert (status, body["error"]["code"]) == (503, "unavailable")
        assert "No answer within" in body["error"]["message"]

    with_gateway(tmp_path, run, client_workers=workers)


def test_readiness_is_looked_at_once_for_all(tmp_path: Path) -> None:
    calls = Stuck([])

    async def run(client: Asking, _: dict[str, str]) -> None:
        async with many(client, "/readyz", calls, 1):
            pass
        assert calls.begun == 1

    with_gateway(tmp_path, run, client_workers=calls)


def test_a_place_whose_keys_cannot_be_read_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> bytes:
        raise OutputUnreachableError("no permission")

    with gateway_services(str(tmp_path / "gateway")) as services:
        token = services.keys.add("mine")
        monkeypatch.setattr(services.place, "read", refuse)

        async def run() -> tuple[int, Any]:
            async with asking(services, token) as client:
                return await answer(client, "GET", "/readyz")

        status, ready = asyncio.run(run())
    assert (status, ready["place"]) == (503, "OutputUnreachableError")


def test_a_redis_that_does_not_answer_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PROBE_SECONDS", 0.01)
    calls = Stuck([])

    async def run(client: Asking, _: dict[str, str]) -> None:
        try:
            status, ready = await answer(client, "GET", "/readyz")
        finally:
            calls.may_end.set()
        assert (status, ready["redis"]) == (503, "no answer")

    with_gateway(tmp_path, run, client_workers=calls)


def test_a_redis_that_hangs_shows_batches_slowly_and_keeps_no_files_waiting(tmp_path: Path) -> None:
    calls = Stuck(None)
    record = BatchRecord(
        id="batch_019a0000000070008000000000000001", owner="mine", endpoint=Endpoint.EMBEDDINGS,
        input_file_id="file-1", input_sha256="0" * 64, created_at=1, expires_at=2,
    )  # fmt: skip
    BatchStore(FolderOutput(tmp_path / "gateway")).begin(record, None)

    async def run(client: Asking, other: dict[str, str]) -> None:
        async with many(client, f"/v1/batches/{record.id}", calls, _THREADS):
            status, body = await answer(client, "GET", "/v1/files", headers=other)
            assert (status, body["data"]) == (200, [])

    with_gateway(tmp_path, run, batches_progress=calls)
