"""Turns of several lanes: who comes next, that none starves, what cancelling does."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from clipfleet.contract.jobs import Lane
from clipfleet_worker.fetch.http.host_turns import HostTurns
from clipfleet_worker.fetch.lane_turns import LaneTurns, set_lane
from tests.support.doubles import Clock
from tests.support.scenarios import in_loop, settle


class Queue:
    """Visitors of a place for one, each of whom stays until sent away."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.turns = LaneTurns(lambda: 1, monotonic=self.clock)
        self.came: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.ends: dict[str, asyncio.Event] = {}

    async def come(self, lane: Lane, *names: str) -> None:
        for name in names:
            self.ends[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._visit(lane, name))
        await settle()

    async def leave_all(self) -> list[str]:
        """In the order in which they came, each as soon as the one before has left."""
        done = 0
        while done < len(self.came):
            self.ends[self.came[done]].set()
            await settle()
            done += 1
        assert self.turns.is_idle
        return self.came

    async def _visit(self, lane: Lane, name: str) -> None:
        set_lane(lane)
        await self.turns.take()
        self.came.append(name)
        try:
            await self.ends[name].wait()
        finally:
            self.turns.release()


@in_loop
async def test_the_best_lane_goes_first_and_of_a_lane_the_first_come() -> None:
    queue = Queue()
    await queue.come(Lane.BULK, "now", "bulk-1", "bulk-2")
    await queue.come(Lane.NORMAL, "normal-1", "normal-2")
    await queue.come(Lane.HIGH, "high-1", "high-2")

    expected = "now high-1 high-2 normal-1 normal-2 bulk-1 bulk-2"
    assert await queue.leave_all() == expected.split()


@in_loop
async def test_every_eighth_turn_goes_to_the_longest_waiter_of_the_other_lanes() -> None:
    queue = Queue()
    await queue.come(Lane.HIGH, *(f"high-{number}" for number in range(33)))
    for name in "abc":  # neither lane is ever empty
        for lane in (Lane.BULK, Lane.NORMAL):
            queue.clock.now += 1
            await queue.come(lane, f"{lane.value}-{name}")

    came = await queue.leave_all()

    assert Counter(name.split("-")[0] for name in came[:33]) == {"high": 29, "bulk": 2, "normal": 2}
    assert came[8:33:8] == ["bulk-a", "normal-a", "bulk-b", "normal-b"]  # the first one did not wait


@in_loop
async def test_who_has_waited_long_comes_every_second_time() -> None:
    queue = Queue()
    await queue.come(Lane.HIGH, "now")
    await queue.come(Lane.BULK, "bulk-1", "bulk-2")
    queue.clock.now += 60
    await queue.come(Lane.BULK, "bulk-3")
    await queue.come(Lane.HIGH, *(f"high-{number}" for number in range(4)))

    expected = "now high-0 bulk-1 high-1 bulk-2 high-2 high-3 bulk-3"
    assert await queue.leave_all() == expected.split()


@in_loop
async def test_cancelled_ones_leave_no_gap_and_take_no_turn() -> None:
    queue = Queue()
    await queue.come(Lane.BULK, "inside", "bulk-1", "bulk-2")
    await queue.come(Lane.HIGH, "high-1", "high-2")
    for name in ("high-1", "bulk-1", "inside"):
        queue.tasks[name].cancel()
        await settle()

    assert await queue.leave_all() == ["inside", "high-2", "bulk-2"]


@in_loop
async def test_one_that_is_cancelled_just_as_its_turn_comes_passes_it_on() -> None:
    queue = Queue()
    await queue.come(Lane.BULK, "inside", "bulk")
    await queue.come(Lane.HIGH, "high")
    queue.ends["inside"].set()
    while not queue.tasks["inside"].done():
        await asyncio.sleep(0)
    queue.tasks["high"].cancel()

    assert await queue.leave_all() == ["inside", "bulk"]


@pytest.mark.parametrize("hosts", ["hhhh", "abcd"], ids=["at one host", "in all"])
@in_loop
async def test_a_better_lane_does_not_wait_for_those_before_it(hosts: str) -> None:
    turns, came, leave = HostTurns(1, 1), [], asyncio.Event()

    async def visit(lane: Lane, host: str) -> None:
        set_lane(lane)
        async with turns.at(host):
            came.append(lane.value)
            await leave.wait()

    tasks = []
    for lane, host in zip((Lane.BULK, Lane.BULK, Lane.BULK, Lane.HIGH), hosts, strict=True):
        tasks.append(asyncio.create_task(visit(lane, host)))
        await settle()
    leave.set()
    await asyncio.gather(*tasks)
    assert came == ["bulk", "high", "bulk", "bulk"]
