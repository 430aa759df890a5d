"""How many requests an endpoint gets at a time."""

from __future__ import annotations

import pytest

from clipfleet_worker.webhooks.pace import Pace
from clipfleet_worker.webhooks.poster import Answer
from tests.support.doubles import Clock

TAKEN, SILENT = Answer(status=200), Answer("no answer")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pace(clock: Clock) -> Pace:
    return Pace(clock)


def test_it_grows_with_each_success_up_to_a_bound(pace: Pace) -> None:
    rooms = [pace.room]
    for _ in range(5):
        pace.note(TAKEN)
        rooms.append(pace.room)

    assert rooms == [2, 4, 8, 16, 16, 16]


def test_requests_in_flight_take_room(pace: Pace) -> None:
    pace.in_flight = 1
    assert pace.room == 1
    pace.in_flight = 5
    assert pace.room == 0


@pytest.mark.parametrize("answer", [SILENT, Answer("e", 502), Answer("e", 503), Answer("e", 504)])
def test_failures_of_the_endpoint_halve_it_then_it_gets_a_pause(
    pace: Pace, clock: Clock, answer: Answer
) -> None:
    for _ in range(3):
        pace.note(TAKEN)
    pace.note(answer)
    assert pace.room == 8, "one may be an accident"
    pace.note(answer)
    assert pace.room == 0
    clock.now += 1
    assert pace.room == 4
    pace.note(TAKEN)
    assert pace.room == 8


def test_too_many_requests_are_a_pause_at_once(pace: Pace, clock: Clock) -> None:
    pace.note(Answer("e", 429))
    assert pace.room == 0
    clock.now += 1
    assert pace.room == 1


@pytest.mark.parametrize("status", [301, 400, 404, 410, 500])
def test_a_failure_of_an_event_slows_no_other(pace: Pace, status: int) -> None:
    pace.note(Answer("e", status))

    assert pace.room == 2


def test_pauses_grow_up_to_a_bound_and_begin_anew_after_a_success(pace: Pace, clock: Clock) -> None:
    pauses = []
    for _ in range(9):
        pace.note(SILENT)
        pauses.append(max(0, pace.paused_until - clock.now))
        clock.now = max(clock.now, pace.paused_until)

    assert pauses == [0, 1, 2, 4, 8, 16, 30, 30, 30]
    assert pace.room == 1
    pace.note(TAKEN)
    pace.note(SILENT)
    assert pace.room == 1, "no pause"


def test_requests_that_fail_together_count_as_two(pace: Pace, clock: Clock) -> None:
    for _ in range(16):
        pace.note(SILENT)

    assert pace.paused_until - clock.now == 1


def test_a_pause_is_as_long_as_the_receiver_asks_up_to_an_hour(pace: Pace, clock: Clock) -> None:
    pace.note(Answer("e", 429, 77))
    assert pace.paused_until - clock.now == 77
    pace.note(Answer("e", 503, 1e9))
    assert pace.paused_until - clock.now == 3600
