"""Hints of a gateway: published beside the requests, whatever the broker does."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from clipfleet.hints import MAX_HINTS
from clipfleet_gateway.asking.work_hints import WorkHints
from tests.support.waiting import wait_until

_PATIENCE_SECONDS = 30


class Broker:
    """Publishes when the test says so."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.answers = threading.Event()
        self.fails: list[Exception] = []

    def publish(self, count: int) -> None:
        self.asked.append(count)
        self.answers.wait(_PATIENCE_SECONDS)
        if self.fails:
            raise self.fails.pop()

    def was_asked(self, calls: int) -> None:
        wait_until(lambda: len(self.asked) >= calls, f"{calls} calls of the broker")


@pytest.fixture
def broker() -> Iterator[Broker]:
    broker = Broker()
    yield broker
    broker.answers.set()


@pytest.fixture
def hints(broker: Broker) -> Iterator[WorkHints]:
    hints = WorkHints(broker.publish)
    yield hints
    broker.answers.set()
    hints.close()


def test_nothing_waits_for_a_broker_that_does_not_answer(broker: Broker, hints: WorkHints) -> None:
    hints.want(1)
    broker.was_asked(1)
    for _ in range(5):
        hints.want(2)
    broker.answers.set()
    broker.was_asked(2)

    assert broker.asked == [1, 10], "at once, what was wanted meanwhile"


def test_there_are_never_more_than_those_of_a_large_job(broker: Broker, hints: WorkHints) -> None:
    hints.want(1)
    broker.was_asked(1)
    for _ in range(1000):
        hints.want(1)
    broker.answers.set()
    broker.was_asked(2)

    assert broker.asked == [1, MAX_HINTS]


def test_no_failure_ends_it(broker: Broker, hints: WorkHints) -> None:
    broker.fails = [RuntimeError("of a library")]
    broker.answers.set()
    hints.want(1)
    broker.was_asked(1)
    hints.want(1)
    broker.was_asked(2)


def test_a_broker_that_does_not_answer_holds_no_end(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipfleet_gateway.asking.work_hints._LAST_SECONDS", 0.01)
    hints = WorkHints(broker.publish)
    hints.want(1)
    broker.was_asked(1)
    hints.want(1)
    hints.close()
    assert not broker.answers.is_set()

    broker.answers.set()
    wait_until(
        lambda: all(thread.name != "hints" for thread in threading.enumerate()), "the thread has ended"
    )
    assert broker.asked == [1]


def test_without_work_there_is_no_thread(broker: Broker) -> None:
    WorkHints(broker.publish).close()
    assert all(thread.name != "hints" for thread in threading.enumerate())
