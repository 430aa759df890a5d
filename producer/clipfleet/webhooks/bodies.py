"""The body of a webhook request: one that both Standard Webhooks and OpenAI's clients read.

    {"id": ..., "object": "event", "type": ..., "created_at": SECONDS, "timestamp": ISO 8601, "data": {...}}

It is the same at each attempt, byte for byte, and smaller than 20 kB: what is too long is cut, and `data.cut`
names the fields that were.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

MAX_BODY_BYTES = 20_000
KEPT_REASONS = 10
KEPT_CHARACTERS = 500  # of a text

_CUT = "cut"
_MOST_IDS = ("id", "decision_id", "job_id", "item_index", "item_id", "status", "state")


class EventDamagedError(ValueError):
    """The data of an event is not a JSON object, as after damage in Redis."""


def event_body(event_id: str, event_type: str, created_ms: int, data: str) -> bytes:
    """The body of a request.

    Args:
        event_id: never cut.
        event_type: such as `decision.flag`.
        created_ms: when the event happened, in milliseconds since 1970.
        data: of the event, as the text of a JSON object.

    Raises:
        EventDamagedError: `data` is something else, or the time is none.
    """
    try:
        found = json.loads(data)
        if not isinstance(found, dict):
            raise EventDamagedError("not a JSON object")
        created = datetime.fromtimestamp(created_ms / 1000, UTC)
        envelope = {
            "id": event_id,
            "object": "event",
            "type": event_type,
            "created_at": created_ms // 1000,
            "timestamp": created.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        }
        return _bounded(envelope, found)
    except (ValueError, OverflowError, OSError, RecursionError) as error:
        raise EventDamagedError("the data of the event is damaged") from error


def _bounded(envelope: Mapping[str, Any], data: Mapping[str, Any]) -> bytes:
    for cut in (data, _with_few_reasons(data), _with_short_texts(data), _with_ids_alone(data)):
        body = _encoded({**envelope, "data": cut})
        if len(body) < MAX_BODY_BYTES:
            return body
    raise EventDamagedError("too long")


def _with_few_reasons(data: Mapping[str, Any]) -> dict[str, Any]:
    reasons = data.get("reasons")
    if not isinstance(reasons, list) or len(reasons) <= KEPT_REASONS:
        return dict(data)
    return {**data, "reasons": reasons[:KEPT_REASONS], _CUT: ["reasons"]}


def _with_short_texts(data: Mapping[str, Any]) -> dict[str, Any]:
    few = _with_few_reasons(data)
    short = {name: _shortened(value) for name, value in few.items()}
    changed = [name for name in data if name != _CUT and short[name] != data[name]]
    return {**short, _CUT: changed}


def _with_ids_alone(data: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: _shortened(data[name]) for name in _MOST_IDS if isinstance(data.get(name), str | int)}
    return {**kept, _CUT: [name for name in data if kept.get(name) != data[name]][:KEPT_REASONS]}


def _shortened(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= KEPT_CHARACTERS else value[: KEPT_CHARACTERS - 1] + "…"
    if isinstance(value, list):
        return [_shortened(one) for one in value]
    if isinstance(value, dict):
        return {name: _shortened(one) for name, one in value.items()}
    return value


def _encoded(event: Mapping[str, Any]) -> bytes:
    text = json.dumps(event, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "replace")  # a lone surrogate, which JSON can spell and UTF-8 cannot
