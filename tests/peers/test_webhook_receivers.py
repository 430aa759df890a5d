"""Receivers that were written for others take our webhook requests: `standardwebhooks`, OpenAI's client."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipfleet.contract.webhooks import EventType, new_secret
from clipfleet.webhooks.bodies import event_body
from clipfleet.webhooks.signing import signed_headers
from tests.support.documents import ROOT, blocks

pytestmark = pytest.mark.peers
HERE = Path(__file__).parent
CREATED_MS = 1_796_300_000_123
DECISION = {
    "decision_id": "dec-20261203-0123456789ab-0-7",
    "status": "flag",
    "reasons": [{"label": "weapon"}],
}
JOB = {"job_id": "nightly", "generation": 0, "state": "completed", "total": 3, "ok": 3, "failed": 0}
EVENTS = {
    EventType.DECISION_FLAG: DECISION,
    EventType.JOB_COMPLETED: JOB,
    **{one: {"id": "batch_1"} for one in EventType if one.startswith("batch.")},
}


def programs(folder: Path) -> list[Path]:
    """The two receivers of the page."""
    shown = [block.text for block in blocks(ROOT / "docs" / "webhooks.md") if block.language == "python"]
    found = []
    for package in ("standardwebhooks", "openai"):
        (text,) = (text for text in shown if f"from {package} import" in text)
        found.append(folder / f"{package}.py")
        found[-1].write_text(text)
    return found


def request(event_type: EventType, secret: str, *secrets: str, seconds: int = 0) -> dict[str, Any]:
    """A request as a worker sends it, and the secret that its receiver has."""
    event_id = f"evt-{event_type.replace('.', '-')}"
    body = event_body(event_id, event_type, CREATED_MS, json.dumps(EVENTS[event_type]))
    headers = signed_headers(secrets or (secret,), event_id, int(time.time()) + seconds, body)
    return {"body": body.decode(), "headers": headers, "secret": secret}


def test_events_are_verified_and_read(python_of: Callable[[str], Path], tmp_path: Path) -> None:
    old, new = new_secret(), new_secret()
    requests = [request(event_type, old) for event_type in EVENTS]
    rotating = [request(EventType.DECISION_FLAG, secret, new, old) for secret in (new, old)]
    refused = [
        request(EventType.DECISION_FLAG, new, old),
        request(EventType.DECISION_FLAG, old, seconds=-400),
        request(EventType.DECISION_FLAG, old) | {"body": "{}"},
    ]
    shown = subprocess.run(
        [python_of("CLIENTS_PYTHON"), HERE / "webhook_receiver_of_others.py", *programs(tmp_path)],
        input="".join(json.dumps(one) + "\n" for one in (*requests, *rotating, *refused)),
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    standard, of_openai = json.loads(shown.stdout)

    ends = len(requests) + len(rotating)
    for events in (standard, of_openai):
        for event, (event_type, data) in zip(events, EVENTS.items(), strict=False):
            assert event["type"] == event_type
            assert event["data"] | data == event["data"], "OpenAI's client adds an id of its own, None"
            assert (event["object"], event["created_at"]) == ("event", CREATED_MS // 1000)
        assert [event["id"] for event in events[len(requests) : ends]] == ["evt-decision-flag"] * 2
        assert ["raised" in event for event in events[ends:]] == [True] * 3
    classes = {event["type"]: event["class"] for event in of_openai[: len(requests)]}
    assert classes["batch.completed"] == "BatchCompletedWebhookEvent", "the client knows these"
