"""Endpoints of webhooks for tests."""

from __future__ import annotations

from typing import Any

from clipfleet.contract.webhooks import Endpoint, EventType, new_secret
from clipfleet.ledger.events.outbox import Outbox


def add_endpoint(outbox: Outbox, url: str, **values: Any) -> tuple[Endpoint, str]:
    """Add an endpoint (see `Endpoint.new`); returns it with its secret."""
    secret = new_secret()
    endpoint = Endpoint.new(url, secret, **values)
    outbox.add_endpoint(endpoint, secret)
    return endpoint, secret


def make_gone(outbox: Outbox, endpoint_id: str, error: str = "HTTP status 410") -> None:
    """Disable an endpoint as the answer 410 to an attempt does: `evt-gone` is one of its failures then."""
    outbox.publish("evt-gone", EventType.JOB_CANCELLED, "{}")
    attempts = outbox.claim("gone", 10_000, 60)
    for one in attempts:
        if (one.endpoint_id, one.event_id) == (endpoint_id, "evt-gone"):
            outbox.disable(one, error)
    outbox.release(attempts)
