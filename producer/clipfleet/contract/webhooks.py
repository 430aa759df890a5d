"""Webhooks: who receives which events, and what is delivered. Frozen data, no I/O."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from secrets import token_bytes, token_hex
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AwareDatetime, ConfigDict, Field, field_validator

from clipfleet.contract.label_sets import FrozenModel
from clipfleet.contract.policies import POLICY_NAME_PATTERN

ENDPOINT_ID_PATTERN = r"^whe-[0-9a-f]{12}$"
SECRET_ID_PATTERN = r"^[0-9a-f]{12}$"  # noqa: S105 - of names of secrets
EVENT_ID_PATTERN = r"^evt-[A-Za-z0-9_-]{1,120}$"  # without dots: it is a part of what is signed
MAX_URL_CHARACTERS = 2000
SECRET_PREFIX = "whsec_"  # noqa: S105 - of every secret of Standard Webhooks
_SECRET_BYTES = (24, 64)
_NEW_SECRET_BYTES = 32
_NO_CONTROLS = re.compile(r"[!-~]+")  # printable ASCII without spaces


class EventType(StrEnum):
    """Types of events."""

    DECISION_FLAG = "decision.flag"
    DECISION_REVIEW = "decision.review"
    DECISION_ALLOW = "decision.allow"
    DECISION_UNDECIDED = "decision.undecided"
    JOB_COMPLETED = "job.completed"  # also with failed rows
    JOB_FAILED = "job.failed"
    JOB_CANCELLED = "job.cancelled"
    BATCH_COMPLETED = "batch.completed"
    BATCH_FAILED = "batch.failed"
    BATCH_EXPIRED = "batch.expired"
    BATCH_CANCELLED = "batch.cancelled"

    @classmethod
    def of_decision(cls, status: str) -> Self:
        """The type of a decision with this status; raises `ValueError`."""
        return cls(f"decision.{status}")


SecretId = Annotated[str, Field(pattern=SECRET_ID_PATTERN)]
EndpointId = Annotated[str, Field(pattern=ENDPOINT_ID_PATTERN)]
PolicyName = Annotated[str, Field(pattern=POLICY_NAME_PATTERN)]


class Endpoint(FrozenModel):
    """A receiver of events."""

    model_config = ConfigDict(hide_input_in_errors=True)

    endpoint_id: EndpointId
    url: Annotated[str, Field(max_length=MAX_URL_CHARACTERS)]
    # Newest first; two while receivers change to the newer one. The secrets themselves lie apart.
    secret_ids: Annotated[tuple[SecretId, ...], Field(min_length=1, max_length=2)]
    events: tuple[EventType, ...] = ()  # empty: all
    # Names; empty: all. An endpoint with policies receives decisions of these only, and all other events.
    policies: tuple[PolicyName, ...] = ()
    disabled: str | None = None  # why nothing is delivered
    created_at: AwareDatetime

    @classmethod
    def new(
        cls,
        url: str,
        secret: str,
        *,
        events: tuple[EventType, ...] = (),
        policies: tuple[str, ...] = (),
        now: datetime | None = None,
    ) -> Self:
        """An endpoint with a new id, which is signed with a secret.

        Raises:
            ValidationError: a value has the wrong form.
        """
        return cls(
            endpoint_id=f"whe-{token_hex(6)}", url=url, secret_ids=(secret_id(secret),),
            events=events, policies=policies, created_at=now or datetime.now(UTC),
        )  # fmt: skip

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        if not _NO_CONTROLS.fullmatch(url):
            raise ValueError("has characters that no URL has; give it percent-encoded")
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError as error:
            raise ValueError(f"not a URL: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("not an address that starts with https:// or http://")
        if "@" in parts.netloc:
            raise ValueError("has a user or password; deliveries are signed instead")
        return url


def new_secret() -> str:
    """A random secret: `whsec_` and 32 bytes as base64."""
    return SECRET_PREFIX + base64.b64encode(token_bytes(_NEW_SECRET_BYTES)).decode()


def secret_id(secret: str) -> str:
    """The name of a secret, from which it cannot be found."""
    return hashlib.sha256(secret.encode()).hexdigest()[:12]


def secret_bytes(secret: str) -> bytes:
    """The key of a secret.

    Raises:
        ValueError: it is not `whsec_` followed by 24 to 64 bytes as base64.
    """
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    fewest, most = _SECRET_BYTES
    if not secret.startswith(SECRET_PREFIX) or not fewest <= len(key) <= most:
        raise ValueError(f"not {SECRET_PREFIX!r} followed by {fewest} to {most} bytes as base64")
    return key


@dataclass(frozen=True, slots=True)
class DecisionEvent:
    """A decision as the ledger passes it on: to the stream, and to the endpoints that want it."""

    status: str  # flag, review, allow or undecided
    event_id: str  # see `EVENT_ID_PATTERN`
    policy: str  # name
    record: str  # the decision record without scores, as JSON

    def __post_init__(self) -> None:
        """Raise `ValueError` for a status or an id that no decision has."""
        EventType.of_decision(self.status)
        if not re.match(EVENT_ID_PATTERN, self.event_id):
            raise ValueError(f"{self.event_id!r} is not the id of an event")


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event that the caller is to deliver to an endpoint before its lease expires."""

    endpoint_id: str
    event_id: str  # the same for every retry and replay
    type: EventType
    data: str  # JSON
    created_ms: int  # when the event happened
    attempts: int  # earlier ones
    token: str  # of the lease


@dataclass(frozen=True, slots=True)
class FailedDelivery:
    """An event that was not delivered to an endpoint, and is not tried again."""

    endpoint_id: str
    event_id: str
    type: EventType
    attempts: int
    error: str  # of the last attempt, or why there was none
    failed_at: datetime
