"""Looks at what is slow: one at a time, shared by all who wait, and kept for a while."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable

import pytest

from clipfleet.errors import RedisUnavailableError
from clipfleet_gateway.errors import ApiError
from clipfleet_gateway.looks import KEPT_SECONDS, Look
from tests.support.doubles import Clock


class Place:
    """What is looked at; it answers when a test says so."""

    def __init__(self, kept_seconds: float = 5.0) -> None:
        self.looks = 0
        self.answers = asyncio.Event()
        self.fails: Exception | None = None
        self.clock = Clock()
        self.look = Look(self._find, "the place", kept_seconds=kept_seconds, monotonic=self.clock)

    async def _find(self) -> int:
        self.looks += 1
        await self.answers.wait()
        if self.fails is not None:
            raise self.fails
        return self.looks

    async def begun(self, count: int) -> None:
        while self.looks < count:
            await asyncio.sleep(0)


def with_place(run: Callable[[Place], Awaitable[None]]) -> None:
    async def inside() -> None:
        await run(Place())

    asyncio.run(inside())


def test_all_share_one_look_which_is_kept_for_a_while() -> None:
    async def run(place: Place) -> None:
        waiting = [asyncio.create_task(place.look.found()) for _ in range(50)]
        await place.begun(1)
        place.answers.set()
        assert await asyncio.gather(*waiting) == [1] * 50
        place.clock.now += 4.9
        assert await place.look.found() == 1
        place.clock.now += 0.2
        assert await place.look.found() == 2

    with_place(run)


def test_all_share_a_failure_which_is_kept_for_a_shorter_while() -> None:
    async def run(place: Place) -> None:
        place.fails = RedisUnavailableError("away")
        waiting = [asyncio.create_task(place.look.found()) for _ in range(50)]
        await place.begun(1)
        place.answers.set()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert found == [place.fails] * 50
        place.fails = None
        with pytest.raises(RedisUnavailableError):
            await place.look.found()
        place.clock.now += KEPT_SECONDS
        assert await place.look.found() == 2

    with_place(run)


def test_a_caller_that_hangs_up_ends_no_look_of_others() -> None:
    async def run(place: Place) -> None:
        gone, stays = (asyncio.create_task(place.look.found()) for _ in range(2))
        await place.begun(1)
        gone.cancel()
        await asyncio.wait([gone])
        place.answers.set()
        assert await stays == 1

    with_place(run)


def test_a_look_that_does_not_end_is_waited_for_so_long_and_not_repeated() -> None:
    async def run(place: Place) -> None:
        for _ in range(3):
            with pytest.raises(ApiError, match="the place does not answer: try again") as caught:
                await place.look.found(0.01)
            assert caught.value.status == 503
        assert place.looks == 1
        place.answers.set()
        assert await place.look.found() == 1

    with_place(run)


def test_a_failure_that_is_of_no_interest_any_more_is_no_error_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def run(place: Place) -> None:
        place.fails = RedisUnavailableError("away")
        with pytest.raises(ApiError):
            await place.look.found(0.01)
        place.answers.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    with_place(run)
    gc.collect()
    assert not caplog.records
