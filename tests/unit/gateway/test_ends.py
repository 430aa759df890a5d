"""Ends of jobs, read by a thread beside the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import cast

import pytest

from clipfleet.errors import RedisUnavailableError
from clipfleet.ledger.jobs import Ledger
from clipfleet_gateway.asking.ends import Ends
from tests.support.waiting import wait_until

_PATIENCE_SECONDS = 30


class _Stream:
    """A stream of ends, whose next entries come when the test says so."""

    def __init__(self) -> None:
        self.reading = threading.Event()
        self.comes = threading.Event()
        self.begin_fails: list[Exception] = []  # in the next calls
        self.read_fails: list[Exception] = []

    def last_end(self) -> str:
        if self.begin_fails:
            raise self.begin_fails.pop()
        return "0-0"

    def wait_for_ends(self, last: str, _: float) -> tuple[str, list[str]]:
        if self.read_fails:
            raise self.read_fails.pop()
        self.reading.set()
        self.comes.wait(_PATIENCE_SECONDS)
        return last, ["door-1"]


async def _called(function: Callable[[], str]) -> str:
    return function()


def _ends(stream: _Stream) -> Ends:
    return Ends(cast("Ledger", stream), lambda function: asyncio.ensure_future(_called(function)))


def test_an_end_is_noted() -> None:
    stream = _Stream()
    ends = _ends(stream)

    async def use() -> None:
        await ends.begin()
        expected = ends.expect("door-1")
        stream.comes.set()
        await asyncio.wait_for(expected, _PATIENCE_SECONDS)

    asyncio.run(use())
    ends.close()


@pytest.mark.parametrize("failure", [RedisUnavailableError("away"), RuntimeError("no more threads")])
def test_a_failure_at_the_beginning_is_not_for_ever(failure: Exception) -> None:
    stream = _Stream()
    ends = _ends(stream)

    async def use() -> None:
        stream.begin_fails = [failure]
        with pytest.raises(type(failure)):
            await ends.begin()
        await ends.begin()

    asyncio.run(use())
    stream.comes.set()
    ends.close()


@pytest.mark.parametrize("failure", [RedisUnavailableError("away"), KeyError("job_id")])
def test_no_failure_ends_the_reading(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipfleet_gateway.asking.ends._PAUSE_SECONDS", 0.0)
    stream = _Stream()
    stream.read_fails = [failure]
    ends = _ends(stream)

    async def use() -> None:
        expected = ends.expect("door-1")
        stream.comes.set()
        await ends.begin()
        await asyncio.wait_for(expected, _PATIENCE_SECONDS)

    asyncio.run(use())
    ends.close()


def test_an_end_that_comes_after_the_loop_is_closed_is_nobodys() -> None:
    stream = _Stream()
    ends = _ends(stream)

    async def use() -> None:
        await ends.begin()
        ends.expect("door-1")

    asyncio.run(use())
    assert stream.reading.wait(_PATIENCE_SECONDS)
    stream.comes.set()
    wait_until(
        lambda: all(thread.name != "ends" for thread in threading.enumerate()),
        "the thread of ends has ended",
    )
    ends.close()  # an error of the thread would fail this test
