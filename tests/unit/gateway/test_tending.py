"""When a gateway looks at what is open: soon at what changes, rarely at what waits, never long at one key."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry, Gauge

from clipfleet.errors import RedisUnavailableError
from clipfleet_gateway.services import Services
from clipfleet_gateway.web.tending import AT_A_TIME, OF_A_KEY, Tending
from tests.support.doubles import Clock


class InThreads:
    """Services of a gateway, as far as tending needs them."""

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.to_thread(function, *arguments)


class Opened:
    """What is open, and how often it was looked at."""

    def __init__(self, *names: str, owner: str = "mine") -> None:
        self.names = [(owner, name) for name in names]
        self.looks: Counter[str] = Counter()
        self.changes: set[str] = set()
        self.error: Exception | None = None
        self.busy: Counter[str] = Counter()
        self.holds = threading.Event()  # set: no look waits
        self.holds.set()

    def open(self) -> list[tuple[str, str]]:
        return [*self.names]

    def advance(self, owner: str, name: str, alive: Callable[[], None], /) -> bool:
        self.looks[name] += 1
        self.busy[owner] += 1
        self.holds.wait()
        if self.error is not None:
            raise self.error
        return name in self.changes


class Bench:
    def __init__(self, opened: Opened) -> None:
        self.clock = Clock()
        gauge = Gauge("open", "open", registry=CollectorRegistry())
        self.tending = Tending(cast(Services, InThreads()), opened, "batch", gauge, monotonic=self.clock)

    async def looked(self, seconds: float) -> None:
        """Let time pass, then look, and wait until nothing is under way."""
        self.clock.now += seconds
        await self.tending.look()
        await self.tending.idle()


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


@pytest.mark.parametrize("error", [None, RedisUnavailableError("away")])
def test_what_waits_is_looked_at_less_and_less_often(error: Exception | None) -> None:
    async def test() -> None:
        opened = Opened("a")
        opened.error = error
        bench = Bench(opened)
        for _ in range(300):
            await bench.looked(2)
        assert 20 <= opened.looks["a"] <= 30, "ten minutes, every half a minute in the end"

        opened.changes, opened.error = {"a"}, None
        await bench.looked(30)
        before = opened.looks["a"]
        for _ in range(10):
            await bench.looked(2)
        assert opened.looks["a"] == before + 10, "it goes on"

    run(test())


def test_one_that_is_asked_for_is_looked_at_at_once() -> None:
    async def test() -> None:
        opened = Opened("a")
        bench = Bench(opened)
        for _ in range(100):
            await bench.looked(2)
        before = opened.looks["a"]

        bench.tending.soon("mine", "a")
        await bench.tending.idle()

        assert opened.looks["a"] == before + 1

    run(test())


def test_one_that_is_asked_for_during_its_look_is_looked_at_once_more() -> None:
    async def test() -> None:
        opened = Opened("a")
        bench = Bench(opened)
        opened.holds.clear()
        bench.tending.soon("mine", "a")
        while not opened.looks["a"]:
            await asyncio.sleep(0)
        for _ in range(3):
            bench.tending.soon("mine", "a")
        opened.holds.set()
        await bench.tending.idle()

        assert opened.looks["a"] == 2

    run(test())


def test_one_that_waits_for_its_turn_is_looked_at_once_and_first() -> None:
    async def test() -> None:
        opened = Opened(*[f"{number}" for number in range(50)])
        bench = Bench(opened)
        opened.holds.clear()
        await bench.tending.look()
        while len(opened.looks) < OF_A_KEY:
            await asyncio.sleep(0)
        for _ in range(3):
            bench.tending.soon("mine", "49")
        opened.holds.set()
        await bench.tending.idle()

        assert set(opened.looks.values()) == {1}
        assert [*opened.looks].index("49") == OF_A_KEY

    run(test())


def test_a_key_with_many_long_ones_leaves_room_for_others() -> None:
    async def test() -> None:
        opened = Opened(*[f"{number}" for number in range(50)])
        bench = Bench(opened)
        opened.holds.clear()
        await bench.tending.look()
        opened.names.append(("other", "b"))
        await bench.tending.look()
        while not opened.looks["b"]:
            await asyncio.sleep(0)
        assert opened.busy == {"mine": OF_A_KEY, "other": 1}
        assert OF_A_KEY < AT_A_TIME
        opened.holds.set()
        await bench.tending.idle()

    run(test())
