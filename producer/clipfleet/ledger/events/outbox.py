"""Webhook events that are to be delivered, by endpoint, in Redis."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import redis
from pydantic import ValidationError
from redis.exceptions import ResponseError

from clipfleet.contract.webhooks import Delivery, Endpoint, EventType, FailedDelivery, secret_id
from clipfleet.errors import UsageError
from clipfleet.ledger import keys
from clipfleet.ledger.scripts import LuaScripts
from clipfleet.redis.connection import connect, redis_errors

MAX_ENDPOINTS = 100
PUBLISHED_SECONDS = 7 * 86400  # for so long an event is known, which is not published again
OUTBOX_SCRIPTS = (
    "endpoint_add", "endpoint_rotate", "endpoint_enable", "endpoint_disable", "endpoint_remove", "publish",
    "deliveries_claim", "delivery_end", "delivery_failures", "delivery_replay",
)  # fmt: skip
_SLICE = 1000  # events in a call: no script blocks the server for long
_AT_ONCE = 0


class Outbox:
    """Endpoints and their deliveries. Calls raise `RedisUnavailableError` while Redis is unavailable.

    Every call is idempotent. Times are the server's. A delivery is pending (due, or waiting for its next
    attempt), leased, or listed as failed; one that was delivered is forgotten.
    """

    def __init__(self, url: str, *, client: redis.Redis | None = None) -> None:
        self._url = url
        self._redis = client or connect(url)
        self._run = LuaScripts(self._redis, url, OUTBOX_SCRIPTS).run

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def add_endpoint(self, endpoint: Endpoint, secret: str) -> None:
        """Add an endpoint that is signed with a secret.

        Raises:
            UsageError: there are `MAX_ENDPOINTS` others.
        """
        (name,) = endpoint.secret_ids
        text = endpoint.model_dump_json(exclude={"disabled"})
        if not self._run("endpoint_add", endpoint.endpoint_id, text, MAX_ENDPOINTS, name, secret):
            raise UsageError(f"there are {MAX_ENDPOINTS} endpoints already: remove one first")

    def endpoints(self) -> list[Endpoint]:
        """All endpoints, the oldest first; those that cannot be read are left out."""
        texts, reasons = self._hash(keys.WEBHOOKS), self._hash(keys.WEBHOOKS_OFF)
        found = []
        for endpoint_id, text in texts.items():
            endpoint = _endpoint(text, reasons.get(endpoint_id))
            if endpoint is not None and endpoint.endpoint_id == endpoint_id:
                found.append(endpoint)
        return sorted(found, key=lambda one: (one.created_at, one.endpoint_id))

    def endpoint(self, endpoint_id: str) -> Endpoint:
        """The endpoint with this id; raises `UsageError` if there is none."""
        for endpoint in self.endpoints():
            if endpoint.endpoint_id == endpoint_id:
                return endpoint
        raise UsageError(f"{endpoint_id}: no such endpoint; `clipfleet webhooks list` shows all")

    def secrets(self, endpoint: Endpoint) -> tuple[str, ...]:
        """The secrets of an endpoint, newest first, without those that are missing or damaged.

        Only workers may read them, see `ops/redis/users.acl`.
        """
        with redis_errors(self._url):
            try:
                found: Any = self._redis.hmget(
                    keys.webhook_secrets(endpoint.endpoint_id), list(endpoint.secret_ids)
                )
            except ResponseError as error:
                if not str(error).startswith("WRONGTYPE"):
                    raise
                return ()
        pairs = zip(endpoint.secret_ids, found, strict=True)
        return tuple(secret for name, secret in pairs if secret is not None and secret_id(secret) == name)

    def rotate(self, endpoint_id: str, secret: str) -> Endpoint:
        """Sign with a new secret, too; the one so far remains until `finish_rotation`.

        Raises:
            UsageError: the endpoint is unknown, has two secrets already, or is changed at the same time.
        """
        before = self.endpoint(endpoint_id)
        if len(before.secret_ids) > 1:
            raise UsageError(
                f"{endpoint_id}: has two secrets already; "
                "`clipfleet webhooks rotate ENDPOINT --finish` removes the older one"
            )
        after = before.model_copy(update={"secret_ids": (secret_id(secret), *before.secret_ids)})
        return self._replace(before, after, secret_id(secret), secret, "")

    def finish_rotation(self, endpoint_id: str) -> Endpoint:
        """Remove the older of two secrets.

        Raises:
            UsageError: the endpoint is unknown, has one secret, or is changed at the same time.
        """
        before = self.endpoint(endpoint_id)
        if len(before.secret_ids) < 2:
            raise UsageError(
                f"{endpoint_id}: has one secret; `clipfleet webhooks rotate {endpoint_id}` makes another"
            )
        newer, older = before.secret_ids
        return self._replace(before, before.model_copy(update={"secret_ids": (newer,)}), "", "", older)

    def _replace(self, before: Endpoint, after: Endpoint, new: str, secret: str, old: str) -> Endpoint:
        texts = [one.model_dump_json(exclude={"disabled"}) for one in (before, after)]
        if not self._run("endpoint_rotate", before.endpoint_id, *texts, new, secret, old):
            raise UsageError(
                f"{before.endpoint_id}: is changed or removed by another caller at this moment; "
                "`clipfleet webhooks list` shows it as it is"
            )
        return after

    def enable(self, endpoint_id: str) -> bool:
        """Deliver to an endpoint again; False if it was not disabled. `replay` delivers what has failed.

        The ends of attempts that began before are ignored: what they were about is sent again.

        Raises:
            UsageError: the endpoint is unknown.
        """
        is_known, was_disabled = self._run("endpoint_enable", endpoint_id)
        if not is_known:
            self.endpoint(endpoint_id)
        return bool(was_disabled)

    def disable(self, delivery: Delivery, error: str) -> None:
        """Record that an attempt has found its endpoint gone: the delivery is listed as failed.

        Nothing more is delivered to the endpoint: what is pending or comes later is listed as failed, until
        `enable`. What is under way ends as its attempt does.
        """
        held = (delivery.endpoint_id, delivery.event_id, delivery.token)
        while self._run("endpoint_disable", *held, error, _SLICE):
            pass

    def remove_endpoint(self, endpoint_id: str) -> bool:
        """Remove an endpoint with its deliveries and failures; False if there was none."""
        was_there, has_more = self._run("endpoint_remove", endpoint_id, _SLICE)
        while has_more:
            _, has_more = self._run("endpoint_remove", endpoint_id, _SLICE)
        return bool(was_there)

    def publish(self, event_id: str, event_type: EventType, data: str, policy: str = "") -> bool:
        """Add an event (`data`: JSON) for every endpoint that wants it; False if it was, within 7 days."""
        return bool(self._run("publish", event_id, event_type, policy, data, PUBLISHED_SECONDS * 1000))

    def claim(
        self, token: str, limit: int, lease_seconds: float, busy: Collection[str] = ()
    ) -> list[Delivery]:
        """Lease deliveries that are due, oldest first; the same token gets the same ones again.

        Endpoints take turns: one with many deliveries delays no other. None is of an endpoint in `busy`.
        """
        answer = self._run("deliveries_claim", token, limit, int(lease_seconds * 1000), *busy)
        found, damaged = [], []
        for endpoint_id, event_id, body, attempts in _in_groups(answer, 4):
            delivery = _delivery(endpoint_id, event_id, body, attempts, token)
            if delivery is None:
                damaged += [endpoint_id, event_id, token]
            else:
                found.append(delivery)
        if damaged:  # planted
            self._run("delivery_end", "failed", _AT_ONCE, "what Redis holds of it is damaged", *damaged)
        return found

    def delivered(self, delivery: Delivery) -> None:
        """Record a success. Like all answers to a delivery: ignored unless its lease is the latest one."""
        self._end("delivered", [delivery])

    def retry(self, delivery: Delivery, delay_seconds: float, error: str) -> None:
        """Record a failed attempt; the next one is due after the delay."""
        self._end("retry", [delivery], delay_seconds, error)

    def fail(self, delivery: Delivery, error: str) -> None:
        """Record a failed attempt, the last one: the delivery is listed as failed."""
        self._end("failed", [delivery], error=error)

    def release(self, deliveries: Sequence[Delivery], delay_seconds: float = 0.0) -> None:
        """Return deliveries that were not attempted: they are due after the delay."""
        for start in range(0, len(deliveries), _SLICE):
            self._end("released", deliveries[start : start + _SLICE], delay_seconds)

    def _end(
        self, how: str, deliveries: Sequence[Delivery], delay_seconds: float = 0.0, error: str = ""
    ) -> None:
        held = [part for one in deliveries for part in (one.endpoint_id, one.event_id, one.token)]
        self._run("delivery_end", how, int(delay_seconds * 1000), error, *held)

    def failures(self, endpoint_id: str | None = None, limit: int = 1000) -> list[FailedDelivery]:
        """Failures of the last 7 days of one endpoint or of all, the latest first."""
        ids = self._ids() if endpoint_id is None else [endpoint_id]
        found = [
            failure
            for one in ids
            for values in _in_groups(self._run("delivery_failures", one, limit), 5)
            if (failure := _failure(one, *values)) is not None
        ]
        return sorted(found, key=lambda one: one.failed_at, reverse=True)[:limit]

    def failure_counts(self) -> Mapping[str, int]:
        """Number of failures of each endpoint, by its id."""
        return self._counts(keys.FAILED)

    def backlog(self) -> Mapping[str, int]:
        """Number of pending and leased deliveries of each endpoint, by its id."""
        return self._counts(keys.PENDING)

    def last_errors(self) -> Mapping[str, str]:
        """The error of the last attempt at each endpoint, by its id; none if that was a success."""
        return self._hash(keys.WEBHOOK_TROUBLE)

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
            Number of deliveries that are due again.

        Raises:
            UsageError: the endpoint is unknown or disabled.
        """
        first, last = _bound(since, "-inf"), _bound(until, "+inf")
        if event_ids:
            slices = (event_ids[start : start + _SLICE] for start in range(0, len(event_ids), _SLICE))
            return sum(self._replay(endpoint_id, first, last, 0, some)[0] for some in slices)
        total = skipped = 0
        while True:
            again, looked_at = self._replay(endpoint_id, first, last, skipped)
            total, skipped = total + again, skipped + looked_at - again
            if looked_at < _SLICE:
                return total

    def _replay(
        self, endpoint_id: str, since: str, until: str, skipped: int, event_ids: Sequence[str] = ()
    ) -> tuple[int, int]:
        answer = self._run("delivery_replay", endpoint_id, since, until, skipped, _SLICE, *event_ids)
        if not answer:
            raise UsageError(f"{endpoint_id}: there is no such endpoint, or it is disabled: enable it first")
        again, looked_at = answer
        return int(again), int(looked_at)

    def _ids(self) -> list[str]:
        return list(self._hash(keys.WEBHOOKS))

    def _hash(self, key: str) -> dict[str, str]:
        with redis_errors(self._url):
            found: dict[str, str] = self._redis.hgetall(key)  # type: ignore[assignment]  # or async
        return found

    def _counts(self, suffix: str) -> dict[str, int]:
        ids = self._ids()
        with redis_errors(self._url), self._redis.pipeline(transaction=False) as pipeline:
            for endpoint_id in ids:
                pipeline.zcard(keys.webhook(endpoint_id, suffix))
            return dict(zip(ids, map(int, pipeline.execute()), strict=True))


def _in_groups(flat: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (flat[start : start + size] for start in range(0, len(flat), size))


def _endpoint(text: str, disabled: str | None) -> Endpoint | None:
    try:
        return Endpoint.model_validate_json(text).model_copy(update={"disabled": disabled})
    except ValidationError:
        return None


def _delivery(endpoint_id: str, event_id: str, body: str, attempts: str, token: str) -> Delivery | None:
    try:
        kind, created_ms, data = body.split("\n", 2)
        return Delivery(endpoint_id, event_id, EventType(kind), data, int(created_ms), int(attempts), token)
    except ValueError:
        return None


def _failure(
    endpoint_id: str, event_id: str, failed_ms: str, kind: str, attempts: str, error: str
) -> FailedDelivery | None:
    try:
        at = datetime.fromtimestamp(float(failed_ms) / 1000, UTC)
        return FailedDelivery(endpoint_id, event_id, EventType(kind), int(attempts), error, at)
    except (ValueError, OverflowError):
        return None


def _bound(moment: datetime | None, otherwise: str) -> str:
    return otherwise if moment is None else str(int(moment.timestamp() * 1000))
