"""Ends of jobs, read by a thread beside the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import cast

from clipfleet.ledger.jobs import Ledger
from clipfleet_gateway.asking.ends import Ends
from tests.support.waiting import wait_until

_PATIENCE_SECONDS = 30


class _Stream:
    """A stream of ends, whose next entries come when the test says so."""

    def __init__(self) -> None:
        self.reading = threading.Event()
        self.comes = threading.Event()

    def last_end(self) -> str:
        return "0-0"

    def wait_for_ends(self, last: str, _: float) -> tuple[str, list[str]]:
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
