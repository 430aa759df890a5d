"""Turns at hosts: how many at a time, in which order, what cancelling and sharing with other workers do."""

from __future__ import annotations

import asyncio

import pytest

from clipfleet_worker.fetch.http.host_turns import HostTurns, report_waits_to
from tests.support.doubles import Clock
from tests.support.scenarios import run, settle


class Visits:
    """Requests that stay at their host until they are told to leave."""

    def __init__(self, turns: HostTurns) -> None:
        self.turns = turns
        self.inside: list[int] = []
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self._leave: dict[int, asyncio.Event] = {}

    def come(self, *numbers: int, host: str = "h") -> None:
        for number in numbers:
            self._leave[number] = asyncio.Event()
            self.tasks[number] = asyncio.create_task(self._visit(number, host))

    async def _visit(self, number: int, host: str) -> None:
        async with self.turns.at(host):
            self.inside.append(number)
            try:
                await self._leave[number].wait()
            finally:
                self.inside.remove(number)

    async def leave(self, number: int) -> list[int]:
        self._leave[number].set()
        return await self.settled()

    async def settled(self) -> list[int]:
        await settle()
        return sorted(self.inside)


def test_first_come_first_served_and_never_more_than_allowed() -> None:
    async def scenario() -> None:
        visits = Visits(HostTurns(2, 100, slow_seconds=30))
        visits.come(1, 2, 3, 4)
        assert await visits.settled() == [1, 2]
        assert await visits.leave(2) == [1, 3]
        visits.come(5)
        assert await visits.leave(3) == [1, 4]
        assert await visits.leave(1) == [4, 5]
        assert visits.turns.slow == 0  # quick ones are not slow

    run(scenario)


def test_hosts_have_turns_of_their_own_up_to_the_total() -> None:
    async def scenario() -> None:
        visits = Visits(HostTurns(2, 3))
        visits.come(1, 2, 3, host="a")
        visits.come(4, 5, host="b")
        assert await visits.settled() == [1, 2, 4]
        assert await visits.leave(4) == [1, 2, 5]

    run(scenario)


@pytest.mark.parametrize("cancelled", [1, 2, 3])
def test_a_cancelled_request_gives_its_turn_or_its_place_away(cancelled: int) -> None:
    async def scenario() -> None:
        visits = Visits(HostTurns(1, 100))
        visits.come(1, 2, 3, 4)
        await visits.settled()
        visits.tasks[cancelled].cancel()
        left = [number for number in (1, 2, 3, 4) if number != cancelled]
        for number in left:
            assert await visits.settled() == [number]
            await visits.leave(number)

    run(scenario)


@pytest.mark.parametrize(("workers", "expected"), [(0, 16), (1, 16), (2, 8), (3, 5), (16, 1), (500, 1)])
def test_what_a_host_is_asked_at_a_time_is_divided_among_workers(workers: int, expected: int) -> None:
    turns = HostTurns(16, 100)
    turns.share(workers)
    assert turns.per_host == expected


def test_what_requests_wait_for_their_host_is_told_to_their_own_job(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        clock = Clock()
        monkeypatch.setattr(asyncio.get_running_loop(), "time", clock)
        visits = Visits(HostTurns(1, 2))
        waits: dict[str, list[float]] = {"one": [], "other": []}
        report_waits_to(waits["one"].append)
        visits.come(1, 2)
        visits.come(3, host="free")
        report_waits_to(waits["other"].append)
        visits.come(4)
        visits.come(5, host="third")  # waits for a turn at all hosts, not at its own
        await visits.settled()
        clock.now += 7
        visits.tasks[4].cancel()
        await visits.settled()
        clock.now += 2
        await visits.leave(1)
        assert waits == {"one": [0, 0, 9], "other": [0, 7]}

    run(scenario)


def test_a_change_holds_for_hosts_that_are_being_asked() -> None:
    async def scenario() -> None:
        visits = Visits(HostTurns(4, 100))
        visits.come(*range(1, 11))
        assert await visits.settled() == [1, 2, 3, 4]
        visits.turns.share(4)
        assert await visits.leave(1) == [2, 3, 4]
        assert await visits.leave(2) == [3, 4]
        assert await visits.leave(3) == [4]
        assert await visits.leave(4) == [5]
        visits.turns.share(1)
        assert await visits.leave(5) == [6, 7, 8, 9]

    run(scenario)


def test_hosts_that_nobody_asks_are_forgotten() -> None:
    async def scenario() -> None:
        turns = HostTurns(1, 100)
        visits = Visits(turns)
        for number in range(50):
            visits.come(number, host=f"host{number}")
        await visits.settled()
        visits.come(99, host="host0")
        await visits.settled()
        visits.tasks[99].cancel()
        for number in range(50):
            await visits.leave(number)
        assert turns._hosts == {}

    run(scenario)


def test_slow_ones_give_way_to_others_up_to_as_many_again() -> None:
    """Their hosts keep counting them; a turn that was given away does not come back with its end."""

    async def scenario() -> None:
        turns = HostTurns(1, 2, slow_seconds=0)
        visits = Visits(turns)
        for number in range(6):
            visits.come(number, host=f"host{number}")
        while turns.slow < 2:
            await asyncio.sleep(0)
        assert await visits.settled() == [0, 1, 2, 3]
        visits.come(6, host="host0")
        assert await visits.settled() == [0, 1, 2, 3]
        assert 6 not in await visits.leave(3)  # the turn of a host that is asked has to wait
        assert 4 in visits.inside
        for number in (0, 1, 2, 4, 5, 6):
            while number not in visits.inside:
                await asyncio.sleep(0)
            await visits.leave(number)
        assert turns.slow == 0
        visits.come(7, 8, host="a")
        visits.come(9, host="b")
        assert await visits.settled() == [7, 9]

    run(scenario)


def test_who_is_cancelled_while_the_host_is_forgotten_leaves_those_alone_who_came_since() -> None:
    async def scenario() -> None:
        visits = Visits(HostTurns(1, 100))
        visits.come(1, 2)
        await visits.settled()
        visits.tasks[1].cancel()
        visits.come(3)  # its turn comes between the ends of the two
        visits.tasks[2].cancel()
        assert await visits.settled() == [3]
        visits.come(4)
        assert await visits.settled() == [3]
        assert await visits.leave(3) == [4]

    run(scenario)
