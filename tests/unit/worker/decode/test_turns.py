"""Small images are read by one thread at a time, large ones side by side, and nobody waits for long."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from clipfleet_worker.decode.turns import DecodeTurns
from clipfleet_worker.process.cores import SMALL_IMAGE_SECONDS
from tests.support.doubles import PATIENCE_SECONDS, Clock, InThread

SMALL = SMALL_IMAGE_SECONDS / 2
LARGE = SMALL_IMAGE_SECONDS * 2
SLICE = 32


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def turns(clock: Clock) -> DecodeTurns:
    return DecodeTurns(patience_seconds=PATIENCE_SECONDS, monotonic=clock, thread_time=clock)


def read(turns: DecodeTurns, clock: Clock, seconds: Sequence[float]) -> list[bool]:
    """Read a slice whose images take so long; whether it had the turn after each."""
    had_turn = []
    with turns.turn() as turn:
        for one in seconds:
            clock.now += one
            turn.note()
            had_turn.append(turn.is_ours)
    return had_turn


def taken_and_given_back(turns: DecodeTurns) -> bool:
    with turns.turn() as turn:
        return turn.is_ours


def test_small_images_are_read_by_one_thread_at_a_time(turns: DecodeTurns) -> None:
    asks = threading.Event()

    def ask() -> bool:
        asks.set()
        return taken_and_given_back(turns)

    with turns.turn() as turn:
        other = InThread(ask)
        assert asks.wait(PATIENCE_SECONDS)
        assert turn.is_ours
        assert not other.is_done
    assert other.result()


def test_who_waits_behind_large_images_goes_on_beside_them(turns: DecodeTurns, clock: Clock) -> None:
    with turns.turn() as turn:
        other = InThread(lambda: taken_and_given_back(turns))
        clock.now += 1.0
        for _ in range(SLICE):
            turn.note()
        assert not other.result()


def test_the_turn_is_kept_while_images_are_small(turns: DecodeTurns, clock: Clock) -> None:
    for _ in range(20):
        assert all(read(turns, clock, [SMALL] * SLICE))


@pytest.mark.parametrize("seconds", [0.05, LARGE, 1.2 * SMALL_IMAGE_SECONDS])
def test_large_images_are_read_side_by_side(turns: DecodeTurns, clock: Clock, seconds: float) -> None:
    had_turn: list[bool] = []
    began = clock.now
    while len(had_turn) < 15 * SLICE and clock.now < began + 1.9:
        had_turn += read(turns, clock, [seconds] * SLICE)
    assert not had_turn[-1]
    assert sum(had_turn) * seconds < 0.2  # what others may have waited for


def test_small_images_on_a_busy_machine_stay_small_and_those_on_a_slow_disk_do_not(clock: Clock) -> None:
    worked = Clock()
    turns = DecodeTurns(monotonic=clock, thread_time=worked)
    for slowed, is_kept in ((2.0, True), (10.0, False)):
        with turns.turn() as turn:
            for _ in range(2 * SLICE):
                worked.now += SMALL_IMAGE_SECONDS / 2
                clock.now += SMALL_IMAGE_SECONDS * slowed
                turn.note()
            assert turn.is_ours is is_kept


def test_a_thread_that_waited_for_others_keeps_its_turn(clock: Clock) -> None:
    turns = DecodeTurns(monotonic=clock, thread_time=Clock())
    with turns.turn() as turn:
        clock.now += 0.03
        for _ in range(SLICE):
            turn.note()
        assert turn.is_ours


def test_after_a_while_small_images_are_noticed(turns: DecodeTurns, clock: Clock) -> None:
    read(turns, clock, [0.05] * SLICE)
    assert not taken_and_given_back(turns)
    clock.now += 10.0
    assert all(read(turns, clock, [SMALL] * SLICE))


def test_a_large_image_here_and_there_changes_nothing(turns: DecodeTurns, clock: Clock) -> None:
    for _ in range(20):
        assert all(read(turns, clock, [SMALL] * (SLICE - 1) + [5 * LARGE]))


def test_nobody_waits_for_long_for_a_thread_that_hangs(clock: Clock) -> None:
    turns = DecodeTurns(patience_seconds=0.01, monotonic=clock, thread_time=clock)
    with turns.turn() as hanging:
        assert hanging.is_ours
        assert not taken_and_given_back(turns)
        assert turns.are_side_by_side  # nor does the next one
    clock.now += 10.0
    assert taken_and_given_back(turns)


def test_an_error_gives_the_turn_back(turns: DecodeTurns) -> None:
    with pytest.raises(ValueError, match="bug"), turns.turn():
        raise ValueError("bug")
    assert taken_and_given_back(turns)
