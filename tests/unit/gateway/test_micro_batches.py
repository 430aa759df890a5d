"""Which requests share a job, and when it begins."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from clipfleet.contract.jobs import ErrorCode, ItemError, Task
from clipfleet.ledger.values import WorkerFacts
from clipfleet_gateway.asking.failures import failure
from clipfleet_gateway.asking.jobs import FULL_INPUTS, Kind, Row
from clipfleet_gateway.asking.micro_batches import MicroBatches, Share
from clipfleet_gateway.asking.served import ServedModels
from clipfleet_gateway.errors import ApiError
from tests.support.doubles import Clock

TEXTS, IMAGES = Kind(Task.EMBED_TEXT, "demo"), Kind(Task.EMBED, "demo")


class Jobs:
    """Jobs that end when a test says so."""

    def __init__(self) -> None:
        self.begun: list[tuple[Kind, list[int]]] = []  # with the number of inputs of each share
        self.may_end = asyncio.Event()
        self.batches = MicroBatches(self._run)

    async def _run(self, kind: Kind, shares: list[Share]) -> None:
        self.begun.append((kind, [len(share.items) for share in shares]))
        await self.may_end.wait()
        for share in shares:
            if not share.rows.done():
                share.rows.set_result([Row()] * len(share.items))

    def add(self, kind: Kind, inputs: int, size_bytes: int = 1) -> Share:
        return self.batches.add(kind, ["x"] * inputs, size_bytes)

    async def begins(self, count: int) -> None:
        while len(self.begun) < count:
            await asyncio.sleep(0)


def with_jobs(run: Callable[[Jobs], Awaitable[None]]) -> None:
    async def inside() -> None:
        await run(Jobs())

    asyncio.run(inside())


def test_requests_of_a_kind_share_a_job() -> None:
    async def run(jobs: Jobs) -> None:
        shares = [jobs.add(TEXTS, 1), jobs.add(IMAGES, 2), jobs.add(TEXTS, 3)]
        assert jobs.begun == []
        await jobs.begins(2)
        assert jobs.begun == [(TEXTS, [1, 3]), (IMAGES, [2])]
        jobs.may_end.set()
        assert [len(await share.rows) for share in shares] == [1, 2, 3]

    with_jobs(run)


def test_a_full_job_begins_at_once() -> None:
    async def run(jobs: Jobs) -> None:
        for _ in range(FULL_INPUTS):
            jobs.add(TEXTS, 1)
        await asyncio.sleep(0)
        assert jobs.begun == [(TEXTS, [1] * FULL_INPUTS)]

    with_jobs(run)


def test_what_would_not_fit_begins_another_job() -> None:
    async def run(jobs: Jobs) -> None:
        jobs.add(TEXTS, 40)
        jobs.add(TEXTS, 30)
        await asyncio.sleep(0)
        assert jobs.begun == [(TEXTS, [40])]
        jobs.add(TEXTS, 500)
        await asyncio.sleep(0)
        assert jobs.begun[1:] == [(TEXTS, [500])], "a large request is alone"
        await jobs.begins(3)
        assert jobs.begun[2:] == [(TEXTS, [30])]

    with_jobs(run)


def test_large_images_do_not_share() -> None:
    async def run(jobs: Jobs) -> None:
        jobs.add(IMAGES, 1, size_bytes=5 << 20)
        jobs.add(IMAGES, 1, size_bytes=5 << 20)
        await jobs.begins(2)
        assert jobs.begun == [(IMAGES, [1]), (IMAGES, [1])]

    with_jobs(run)


def test_while_jobs_are_under_way_more_share_the_next() -> None:
    async def run(jobs: Jobs) -> None:
        for number in range(2):
            jobs.add(TEXTS, 1)
            await jobs.begins(number + 1)
        waiting = [jobs.add(TEXTS, 1) for _ in range(5)]
        await asyncio.sleep(0)
        assert len(jobs.begun) == 2
        jobs.may_end.set()
        await asyncio.gather(*(share.rows for share in waiting))
        assert jobs.begun[2:] == [(TEXTS, [1] * 5)]

    with_jobs(run)


def test_stuck_jobs_do_not_hold_the_next_for_long() -> None:
    async def run(jobs: Jobs) -> None:
        for number in range(5):
            jobs.add(TEXTS, 1)
            await jobs.begins(number + 1)

    with_jobs(run)


def test_what_is_withdrawn_is_not_done() -> None:
    async def run(jobs: Jobs) -> None:
        gone, stays = jobs.add(TEXTS, 1), jobs.add(TEXTS, 2)
        alone = jobs.add(IMAGES, 1)
        gone.rows.cancel()
        alone.rows.cancel()
        await jobs.begins(1)
        assert jobs.begun == [(TEXTS, [2])]
        jobs.may_end.set()
        await stays.rows

    with_jobs(run)


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_failure_is_somebodys(code: ErrorCode) -> None:
    error = failure(ItemError(code, "because"), "input[3]")

    ours = {"out_of_memory", "model_unavailable", "output_unreachable", "output_conflict", "chunk_failed"}
    assert error.status == (503 if code.value in ours else 400)
    assert "input[3]" in error.message
    if error.status == 400:
        assert (error.param, error.code) == ("input[3]", code.value)


class Fleet:
    """Workers that come and go, and how often somebody looks."""

    def __init__(self, *models: str) -> None:
        self.models, self.looks = models, 0
        self.clock = Clock()
        self.ever: set[str] = set()  # served, as the place knows
        self.served = ServedModels(self._find, self._has_served, monotonic=self.clock)

    async def _find(self) -> list[WorkerFacts]:
        self.looks += 1
        return [WorkerFacts(model, "here", 1, (model,)) for model in self.models]

    async def _has_served(self, model: str) -> bool:
        return model in self.ever


def test_models_are_looked_up_once_in_a_while() -> None:
    async def run() -> None:
        fleet = Fleet("a", "b")
        await asyncio.gather(*(fleet.served.require("a") for _ in range(50)))
        assert fleet.looks == 1
        with pytest.raises(ApiError, match="served: a, b") as caught:
            await fleet.served.require("c")
        assert caught.value.status == 404
        fleet.models, fleet.clock.now = ("b",), fleet.clock.now + 10
        await fleet.served.require("a")
        assert await fleet.served.away_seconds("a") == 10
        assert await fleet.served.away_seconds("b") == 0
        assert await fleet.served.away_seconds("c") is None

    asyncio.run(run())


def test_a_model_that_was_served_before_this_gateway_began_is_away() -> None:
    async def run() -> None:
        fleet = Fleet("a")
        fleet.ever = {"b"}
        await fleet.served.require("b")
        fleet.clock.now += 10
        assert await fleet.served.away_seconds("b") == 10

    asyncio.run(run())


def test_the_only_model_is_the_default() -> None:
    async def run() -> None:
        assert await Fleet("a").served.only() == "a"
        for models, status in (((), 503), (("a", "b"), 400)):
            with pytest.raises(ApiError) as caught:
                await Fleet(*models).served.only()
            assert caught.value.status == status
        await Fleet().served.require("anything")

    asyncio.run(run())
