"""What waits is bounded, and one key leaves room for others."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from clipfleet.contract.jobs import Task
from clipfleet.contract.label_sets import LabelSet
from clipfleet_gateway.asking import room as room_module
from clipfleet_gateway.asking.asker import kept_bytes
from clipfleet_gateway.asking.room import Room
from clipfleet_gateway.errors import ApiError
from clipfleet_gateway.inputs.asked import Asked


def refusal(room: Room, owner: str, inputs: int, size_bytes: int = 0) -> tuple[int, str | None] | None:
    try:
        with room.held(owner, inputs) as keep:
            keep(size_bytes)
    except ApiError as error:
        return error.status, error.code
    return None


FULL = (429, "overloaded")


def test_a_key_leaves_room_for_others() -> None:
    room = Room(8, 800)
    with room.held("one", 4) as keep:
        keep(400)
        assert refusal(room, "one", 1) == FULL
        assert refusal(room, "two", 4, 400) is None
        with room.held("two", 3):
            assert refusal(room, "three", 2) == FULL
            assert refusal(room, "three", 1, 400) is None
        assert refusal(room, "two", 1, 401) == FULL
    assert refusal(room, "one", 4, 400) is None


def test_what_waits_alone_is_never_too_much() -> None:
    assert refusal(Room(2, 100), "one", 9, 900) is None


def test_what_is_refused_takes_nothing() -> None:
    room = Room(8, 800)
    with room.held("one", 1) as keep, ExitStack() as others:
        keep(300)
        for _ in range(3):
            with pytest.raises(ApiError):
                keep(200)
        others.enter_context(room.held("two", 4))(400)
    assert refusal(room, "one", 8, 800) is None


def test_a_request_has_a_bound_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room_module, "MOST_REQUEST_BYTES", 10)
    with Room(8, 800).held("one", 1) as keep:
        keep(6)
        with pytest.raises(ApiError) as raised:
            keep(5)
    assert (raised.value.status, raised.value.code) == (413, "inputs_too_large")


def test_labels_are_kept_too() -> None:
    """A thousand of a thousand characters are more than the image."""
    asked = Asked(Task.CLASSIFY, "demo", LabelSet(labels=("cat", "horse")), ({"bytes": b"xy"},), ("inputs",))

    assert kept_bytes(asked) == 10
