"""How much a worker takes on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from clipfleet.contract.jobs import Lane
from clipfleet_worker.chunk.open_items import OpenItems
from clipfleet_worker.fetch.waiting_bytes import WaitingBytes
from tests.support.doubles import PATIENCE_SECONDS, InThread, WatchedCondition

ALL = tuple(Lane)


def opened(limit: int, count: int) -> OpenItems:
    items = OpenItems(limit)
    items.add(count)
    return items


def full(limit: int) -> OpenItems:
    """Without what is kept for the best lane, too."""
    items = opened(limit, limit - limit // 10)
    items.add(limit // 10, from_reserve=True)
    return items


def waiting(items: OpenItems) -> InThread:
    """A thread that waits for room."""
    items._changed = changed = WatchedCondition()
    call = InThread(items.wait_for_room)
    assert changed.somebody_waits.wait(PATIENCE_SECONDS)
    return call


class TestRoom:
    @pytest.mark.parametrize(
        ("items", "lanes"),
        [
            (OpenItems(1), ALL),
            (OpenItems(100), ALL),
            (opened(100, 89), ALL),
            (opened(100, 90), (Lane.HIGH,)),  # the last tenth is kept for the best lane
            (opened(100, 99), (Lane.HIGH,)),
            (full(100), ()),
        ],
    )
    def test_lanes_have_room_up_to_the_limit(self, items: OpenItems, lanes: Sequence[Lane]) -> None:
        assert items.wait_for_room(timeout_seconds=0) == lanes

    def test_no_chunk_of_the_others_takes_what_is_kept_however_large(self) -> None:
        items = opened(100, 300)
        assert items.wait_for_room(timeout_seconds=0) == (Lane.HIGH,)
        items.add(4, from_reserve=True)
        assert items.wait_for_room(timeout_seconds=0) == (Lane.HIGH,)
        items.add(6, from_reserve=True)
        assert items.wait_for_room(timeout_seconds=0) == ()
        items.remove(6, from_reserve=True)
        assert items.wait_for_room(timeout_seconds=0) == (Lane.HIGH,)

    def test_a_wait_ends_when_items_are_removed(self) -> None:
        items = full(100)
        call = waiting(items)

        items.remove(50)

        assert call.result() == ALL
        assert items.count == 50


class TestMakingRoom:
    def test_items_that_have_ended_make_room_while_others_are_waited_for(self) -> None:
        items = opened(100, 100)
        with items.making_room() as make_room:
            make_room(30)
            assert items.count == 70
            assert items.wait_for_room() == ALL

    def test_a_wait_ends_when_enough_items_have_ended(self) -> None:
        items = full(100)
        with items.making_room() as make_room:
            call = waiting(items)
            make_room(11)
            assert call.result() == ALL

    def test_they_count_again_at_the_end_of_the_chunk_and_later_ones_do_not_matter(self) -> None:
        items = opened(100, 60)
        with pytest.raises(RuntimeError), items.making_room() as make_room:
            make_room(59)
            raise RuntimeError
        make_room(5)
        assert items.count == 60
        items.remove(60)
        assert items.count == 0

    def test_there_is_a_limit_to_items_that_wait_for_others(self) -> None:
        items = OpenItems(10)
        with items.making_room() as make_room, items.making_room() as make_more:
            items.add(200)
            make_room(150)
            make_more(20)
            assert items.count == 200 - 160
        assert items.count == 200
        with items.making_room() as make_room:
            make_room(150)
            assert items.count == 50


def test_after_close_no_lane_has_room() -> None:
    items = full(100)
    call = waiting(items)

    items.close()

    assert call.result() == ()
    items.remove(50)
    assert items.wait_for_room() == ()


def test_each_lane_fetches_on_when_there_is_room_for_it_the_best_one_first() -> None:
    async def check() -> None:
        waiting = WaitingBytes(100)
        waiting.bind(asyncio.get_running_loop())
        waiting.add(120)
        best, other = (asyncio.create_task(waiting.wait_open(lane)) for lane in (Lane.HIGH, Lane.BULK))
        waiting.remove(10)
        for _ in range(5):
            await asyncio.sleep(0)
        assert not best.done()
        waiting.remove(5)
        await asyncio.wait_for(best, PATIENCE_SECONDS)
        assert not other.done()
        waiting.remove(10)
        await asyncio.wait_for(other, PATIENCE_SECONDS)

    asyncio.run(check())
