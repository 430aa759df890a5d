"""Loading ahead: in order, bounded, nothing before it is wanted, nothing after a failure."""

from __future__ import annotations

import threading

import pytest

from clipfleet.parts import read_ahead
from tests.support.doubles import PATIENCE_SECONDS


def test_results_come_in_order_whatever_ends_first() -> None:
    second = threading.Event()

    def load(number: int) -> int:
        if number == 1:
            assert second.wait(PATIENCE_SECONDS)
        if number == 2:
            second.set()
        return number * number

    assert list(read_ahead(load, range(50), depth=4)) == [number * number for number in range(50)]


def test_a_failure_comes_in_its_turn_and_ends_it() -> None:
    def load(number: int) -> int:
        if number == 5:
            raise FileNotFoundError("5")
        return number

    taken: list[int] = []
    with pytest.raises(FileNotFoundError, match="5"):
        for number in read_ahead(load, range(100), depth=4):
            taken.append(number)

    assert taken == [0, 1, 2, 3, 4]


def test_nothing_to_load() -> None:
    assert list(read_ahead(str, [], depth=4)) == []
