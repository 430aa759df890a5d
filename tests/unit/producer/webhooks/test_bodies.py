"""Bodies of webhook requests: the shape, the bound, and what is cut."""

from __future__ import annotations

import json
from typing import Any

import pytest

from clipfleet.webhooks.bodies import EventDamagedError, event_body

EVENT_ID = "evt-dec-20261203-0123456789ab-0-7"
REASON = {"rule": "weapons", "label": "weapon", "score": 0.93, "threshold": 0.5}


def body_of(data: object) -> dict[str, Any]:
    raw = event_body(EVENT_ID, "decision.flag", 1_796_300_000_123, json.dumps(data))
    assert len(raw) < 20_000
    found: dict[str, Any] = json.loads(raw)
    assert found["id"] == EVENT_ID
    return found


def test_one_body_serves_both_readers() -> None:
    assert body_of({"decision_id": "dec-1", "status": "flag", "reasons": [REASON]}) == {
        "id": EVENT_ID,
        "object": "event",
        "type": "decision.flag",
        "created_at": 1_796_300_000,
        "timestamp": "2026-12-03T12:13:20.123Z",
        "data": {"decision_id": "dec-1", "status": "flag", "reasons": [REASON]},
    }


def test_it_is_the_same_at_each_attempt() -> None:
    data = json.dumps({"b": 1, "a": ["ä", None, 0.1]})

    assert event_body("e", "t", 5, data) == event_body("e", "t", 5, data)


def test_a_long_list_of_reasons_is_cut() -> None:
    data = body_of({"decision_id": "dec-1", "reasons": [REASON] * 1000, "uri": "u" * 600})["data"]

    assert data["reasons"] == [REASON] * 10
    assert (data["decision_id"], data["uri"], data["cut"]) == ("dec-1", "u" * 600, ["reasons"])


def test_long_texts_are_cut_wherever_they_stand() -> None:
    error = {"code": "timeout", "detail": "d" * 9000}
    data = body_of({"decision_id": "dec-1", "uri": "ä" * 9000, "error": error, "reasons": [REASON]})["data"]

    assert (len(data["uri"]), len(data["error"]["detail"])) == (500, 500)
    assert data["uri"].endswith("ä…")
    assert (data["reasons"], data["cut"]) == ([REASON], ["uri", "error"])


def test_of_what_is_still_too_long_the_ids_are_left() -> None:
    many = {str(number): "x" * 400 for number in range(100)}
    data = body_of({"decision_id": "dec-1", "item_id": "i" * 900, "status": "flag", **many})["data"]

    assert (data["decision_id"], data["status"], len(data["item_id"])) == ("dec-1", "flag", 500)
    assert "item_id" in data["cut"]
    assert "7" in data["cut"]


def test_a_lone_surrogate_is_replaced() -> None:
    assert body_of({"item_id": "\ud800"})["data"] == {"item_id": "?"}


@pytest.mark.parametrize(
    "data", ["", "[]", "null", "{", '{"score": NaN}', '{"a":' * 100_000, '{"n": ' + "1" * 6000 + "}"]
)
def test_data_that_is_damaged_raises(data: str) -> None:
    with pytest.raises(EventDamagedError):
        event_body(EVENT_ID, "decision.flag", 0, data)


def test_a_time_that_is_none_raises() -> None:
    with pytest.raises(EventDamagedError):
        event_body(EVENT_ID, "decision.flag", 10**20, "{}")
