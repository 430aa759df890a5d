"""Webhook events that are to be delivered, by endpoint, in Redis."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from clipfleet.contract.webhooks import Delivery, Endpoint, EventType, FailedDelivery


class Outbox:
    """Endpoints and their deliveries. Calls raise `RedisUnavailableError` while Redis is unavailable.

    Every call is idempotent. Times are the server's. A delivery is pending (due, or waiting for its next
    attempt), leased, or listed as failed; one that was delivered is forgotten.
    """

    def __init__(self, url: str) -> None: ...

    def close(self) -> None:
        """Close the connections."""

    def put_endpoint(self, endpoint: Endpoint) -> None:
        """Add an endpoint, or replace the one with its id, whose deliveries stay.

        Raises:
            UsageError: there are `MAX_ENDPOINTS` others.
        """
        raise NotImplementedError

    def endpoints(self) -> list[Endpoint]:
        """All endpoints, the oldest first; those that cannot be read are left out."""
        raise NotImplementedError

    def remove_endpoint(self, endpoint_id: str) -> bool:
        """Remove an endpoint with its deliveries and failures; False if there was none."""
        raise NotImplementedError

    def publish(self, event_id: str, event_type: EventType, data: str, policy: str = "") -> bool:
        """Add an event (`data`: JSON) for every endpoint that wants it; False if it was, within 7 days."""
        raise NotImplementedError

    def claim(
        self, token: str, limit: int, lease_seconds: float, busy: Collection[str] = ()
    ) -> list[Delivery]:
        """Lease deliveries that are due, oldest first; the same token gets the same ones again.

        Endpoints take turns: one with many deliveries delays no other. None is of an endpoint in `busy`.
        """
        raise NotImplementedError

    def delivered(self, delivery: Delivery) -> None:
        """Record a success. Like all answers to a delivery: ignored unless its lease is the latest one."""
        raise NotImplementedError

    def retry(self, delivery: Delivery, delay_seconds: float, error: str) -> None:
        """Record a failed attempt; the next one is due after the delay."""
        raise NotImplementedError

    def fail(self, delivery: Delivery, error: str) -> None:
        """Record a failed attempt, the last one: the delivery is listed as failed."""
        raise NotImplementedError

    def release(self, deliveries: Sequence[Delivery]) -> None:
        """Return deliveries that were not attempted: they are due at once."""
        raise NotImplementedError

    def disable(self, endpoint_id: str, reason: str) -> None:
        """Deliver nothing more to an endpoint: what is pending or comes later is listed as failed.

        `put_endpoint` with an endpoint that is not `disabled` ends this, and `replay` delivers the failures.
        """
        raise NotImplementedError

    def failures(self, endpoint_id: str | None = None, limit: int = 1000) -> list[FailedDelivery]:
        """Failures of the last 7 days of one endpoint or of all, the latest first."""
        raise NotImplementedError

    def failure_counts(self) -> Mapping[str, int]:
        """Number of failures of each endpoint, by its id."""
        raise NotImplementedError

    def backlog(self) -> Mapping[str, int]:
        """Number of pending and leased deliveries of each endpoint, by its id."""
        raise NotImplementedError

    def last_errors(self) -> Mapping[str, str]:
        """The error of the last attempt at each endpoint, by its id; none if that was a success."""
        raise NotImplementedError

    def replay(
        self,
        endpoint_id: str,
        event_ids: Sequence[str] = (),
        *,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> int:
        """Deliver failures again: due now, with no attempts and the same event ids.

        Args:
            endpoint_id: the endpoint.
            event_ids: of the failures; empty: all that failed in the range of time.
            since: earliest time of failure.
            until: latest time of failure.

        Returns:
            Number of deliveries that are due again; those whose data was not kept cannot be.

        Raises:
            UsageError: the endpoint is unknown or disabled.
        """
        raise NotImplementedError
