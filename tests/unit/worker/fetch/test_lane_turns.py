"""Turns of several lanes: who comes next, that none starves, what cancelling does."""

from __future__ import annotations

import asyncio
from collections import Counter

from clipfleet.contract.jobs import Lane
from clipfleet_worker.fetch.http.host_turns import HostTurns
from clipfleet_worker.fetch.lane_turns import LaneTurns, set_lane
from tests.support.doubles import Clock
from tests.support.scenarios import run, settle


class Line:
    """Visitors of one place, each of whom leaves when he is told to."""

    def __init__(self, limit: int) -> None:
        self.clock = Clock()
        self.turns = LaneTurns(lambda: limit, monotonic=self.clock)
        self.came: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._leave: dict[str, asyncio.Event] = {}

    async def come(self, lane: Lane, *names: str) -> None:
        for name in names:
            self._leave[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._visit(lane, name))
        await settle()

    async def leave(self, name: str) -> None:
        self._leave[name].set()
        await settle()

    async def leave_all(self) -> list[str]:
        """In the order in which they came, each as soon as the one before has left."""
        done = 0
        while done < len(self.came):
            await self.leave(self.came[done])
            done += 1
        return self.came

    async def _visit(self, lane: Lane, name: str) -> None:
        set_lane(lane)
        await self.turns.take()
        self.came.append(name)
        try:
            await self._leave[name].wait()
        finally:
            self.turns.release()


def test_the_best_lane_goes_first_and_of_a_lane_the_first_come() -> None:
    async def scenario() -> None:
        line = Line(1)
        await line.come(Lane.BULK, "now", "bulk-1", "bulk-2")
        await line.come(Lane.NORMAL, "normal-1", "normal-2")
        await line.come(Lane.HIGH, "high-1", "high-2")

        assert await line.leave_all() == [
            "now", "high-1", "high-2", "normal-1", "normal-2", "bulk-1", "bulk-2",
        ]  # fmt: skip
        assert line.turns.is_idle

    run(scenario)


def test_every_eighth_turn_goes_to_who_has_waited_longest_in_the_other_lanes() -> None:
    async def scenario() -> None:
        line = Line(1)
        await line.come(Lane.HIGH, *(f"high-{number}" for number in range(33)))
        for name in "abc":  # neither lane is ever empty
            for lane in (Lane.BULK, Lane.NORMAL):
                line.clock.now += 1
                await line.come(lane, f"{lane.value}-{name}")

        came = await line.leave_all()

        assert Counter(name.split("-")[0] for name in came[:33]) == {"high": 29, "bulk": 2, "normal": 2}
        assert came[8:33:8] == ["bulk-a", "normal-a", "bulk-b", "normal-b"]  # the first one did not wait

    run(scenario)


def test_who_has_waited_long_comes_every_second_time() -> None:
    async def scenario() -> None:
        line = Line(1)
        await line.come(Lane.HIGH, "now")
        await line.come(Lane.BULK, "bulk-1", "bulk-2")
        line.clock.now += 60
        await line.come(Lane.BULK, "bulk-3")
        await line.come(Lane.HIGH, *(f"high-{number}" for number in range(4)))

        assert await line.leave_all() == [
            "now", "high-0", "bulk-1", "high-1", "bulk-2", "high-2", "high-3", "bulk-3",
        ]  # fmt: skip

    run(scenario)


def test_cancelled_ones_leave_no_gap_and_take_no_turn() -> None:
    async def scenario() -> None:
        line = Line(1)
        await line.come(Lane.BULK, "inside", "bulk-1", "bulk-2")
        await line.come(Lane.HIGH, "high-1", "high-2")
        line.tasks["high-1"].cancel()
        line.tasks["bulk-1"].cancel()
        await settle()
        line.tasks["inside"].cancel()
        await settle()

        assert await line.leave_all() == ["inside", "high-2", "bulk-2"]
        assert line.turns.is_idle

    run(scenario)


def test_one_that_is_cancelled_just_as_its_turn_comes_passes_it_on() -> None:
    async def scenario() -> None:
        line = Line(1)
        await line.come(Lane.BULK, "inside", "bulk")
        await line.come(Lane.HIGH, "high")
        line._leave["inside"].set()
        while not line.tasks["inside"].done():
            await asyncio.sleep(0)
        line.tasks["high"].cancel()
        await settle()

        assert line.came == ["inside", "bulk"]
        await line.leave("bulk")
        assert line.turns.is_idle

    run(scenario)


def test_at_a_host_and_in_all_a_better_lane_does_not_wait_for_those_before_it() -> None:
    async def scenario(hosts: list[str]) -> list[str]:
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
        return came

    for hosts in (["h"] * 4, ["a", "b", "c", "d"]):
        assert asyncio.run(scenario(hosts)) == ["bulk", "high", "bulk", "bulk"]
