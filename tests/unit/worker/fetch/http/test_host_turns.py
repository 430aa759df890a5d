"""Turns at hosts: how many at a time, in which order, what cancelling and sharing with other workers do."""

from __future__ import annotations

import asyncio

import pytest

from clipfleet_worker.fetch.http.host_turns import HostTurns, report_waits_to
from tests.support.doubles import Clock
from tests.support.scenarios import in_loop, settle


class Visits:
    """Requests that stay at their host until sent away."""

    def __init__(self, per_host: int, total: int = 100, slow_seconds: float = 30) -> None:
        self.turns = HostTurns(per_host, total, slow_seconds=slow_seconds)
        self.inside: list[int] = []
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self._leave: dict[int, asyncio.Event] = {}

    async def come(self, *numbers: int, host: str = "h") -> list[int]:
        for number in numbers:
            self.start(number, host)
        return await self.settled()

    async def come_each_to_another_host(self, count: int) -> list[int]:
        for number in range(count):
            self.start(number, f"host{number}")
        return await self.settled()

    def start(self, number: int, host: str) -> None:
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


@in_loop
async def test_first_come_first_served_and_never_more_than_allowed() -> None:
    visits = Visits(2)
    assert await visits.come(1, 2, 3, 4) == [1, 2]
    assert await visits.leave(2) == [1, 3]
    await visits.come(5)
    assert await visits.leave(3) == [1, 4]
    assert await visits.leave(1) == [4, 5]
    assert visits.turns.slow == 0  # quick ones are not slow


@in_loop
async def test_hosts_have_turns_of_their_own_up_to_the_total() -> None:
    visits = Visits(2, 3)
    await visits.come(1, 2, 3, host="a")
    assert await visits.come(4, 5, host="b") == [1, 2, 4]
    assert await visits.leave(4) == [1, 2, 5]


@pytest.mark.parametrize("cancelled", [1, 2, 3])
@in_loop
async def test_a_cancelled_request_releases_its_turn_or_its_place(cancelled: int) -> None:
    visits = Visits(1)
    await visits.come(1, 2, 3, 4)
    visits.tasks[cancelled].cancel()
    for number in {1, 2, 3, 4} - {cancelled}:
        assert await visits.settled() == [number]
        await visits.leave(number)


@pytest.mark.parametrize(("workers", "expected"), [(0, 16), (1, 16), (2, 8), (3, 5), (16, 1), (500, 1)])
def test_what_a_host_is_asked_at_a_time_is_divided_among_workers(workers: int, expected: int) -> None:
    turns = HostTurns(16, 100)
    turns.share(workers)
    assert turns.per_host == expected


@in_loop
async def test_a_job_is_told_what_its_requests_wait_for_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(asyncio.get_running_loop(), "time", clock)
    visits = Visits(1, 2)
    waits: dict[str, list[float]] = {"one": [], "other": []}
    report_waits_to(waits["one"].append)
    await visits.come(1, 2)
    await visits.come(3, host="free")
    report_waits_to(waits["other"].append)
    await visits.come(4)
    await visits.come(5, host="third")  # waits for a turn at all hosts, not at its own
    clock.now += 7
    visits.tasks[4].cancel()
    await visits.settled()
    clock.now += 2
    await visits.leave(1)
    assert waits == {"one": [0, 0, 9], "other": [0, 7]}


@in_loop
async def test_a_change_holds_for_hosts_that_are_being_asked() -> None:
    visits = Visits(4)
    assert await visits.come(*range(1, 11)) == [1, 2, 3, 4]
    visits.turns.share(4)
    for number, left in ((1, [2, 3, 4]), (2, [3, 4]), (3, [4]), (4, [5])):
        assert await visits.leave(number) == left
    visits.turns.share(1)
    assert await visits.leave(5) == [6, 7, 8, 9]


@in_loop
async def test_hosts_that_nobody_asks_are_forgotten() -> None:
    visits = Visits(1)
    await visits.come_each_to_another_host(50)
    await visits.come(99, host="host0")
    visits.tasks[99].cancel()
    for number in range(50):
        await visits.leave(number)
    assert visits.turns._hosts == {}


@in_loop
async def test_slow_ones_give_way_to_others_up_to_as_many_again() -> None:
    """Their hosts keep counting them; a turn that gave way does not come back with its end."""
    visits = Visits(1, 2, slow_seconds=0)
    await visits.come_each_to_another_host(6)
    while visits.turns.slow < 2:
        await asyncio.sleep(0)
    assert await visits.settled() == [0, 1, 2, 3]
    assert await visits.come(6, host="host0") == [0, 1, 2, 3]
    assert 6 not in await visits.leave(3)  # the turn of a host that is asked has to wait
    assert 4 in visits.inside
    for number in (0, 1, 2, 4, 5, 6):
        while number not in visits.inside:
            await asyncio.sleep(0)
        await visits.leave(number)
    assert visits.turns.slow == 0
    await visits.come(7, 8, host="a")
    assert await visits.come(9, host="b") == [7, 9]


@in_loop
async def test_who_is_cancelled_while_its_host_is_forgotten_leaves_later_ones_alone() -> None:
    visits = Visits(1)
    await visits.come(1, 2)
    visits.tasks[1].cancel()
    visits.start(3, "h")  # its turn comes between the ends of the two
    visits.tasks[2].cancel()
    assert await visits.settled() == [3]
    assert await visits.come(4) == [3]
    assert await visits.leave(3) == [4]
