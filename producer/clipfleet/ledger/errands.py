"""Work that any worker does for ended jobs: announce their end to users, sweep their outputs."""

from __future__ import annotations

import json
import logging
import re
import uuid
from dataclasses import dataclass
from typing import Any, Self

from clipfleet.contract.jobs import CELERY_NAME_PATTERN, is_queue_of_users
from clipfleet.ledger.scripts import LuaScripts
from clipfleet.redis.connection import connect

log = logging.getLogger(__name__)

_SCRIPTS = ("claim_announcement", "claim_sweep", "drop_errand")
_NAMESPACE = uuid.UUID("8f2c1f5e-3c1e-4a57-9f0e-6b1f7f0f6a3d")


@dataclass(frozen=True, slots=True)
class Announcement:
    """The end of one generation of a job, to be sent to the user's own Celery task."""

    text: str  # as the ledger keeps it
    task: str  # name of the user's Celery task
    queue: str
    event: dict[str, Any]  # its only argument: job_id, generation, state, total, ok, failed, output, reason

    @classmethod
    def of_text(cls, text: str) -> Self:
        """Parse the text that the ledger keeps.

        Raises:
            ValueError: it is not an announcement; it may be planted.
        """
        try:
            value = json.loads(text)
            task, queue, event = value["task"], value["queue"], value["event"]
            is_whole = isinstance(event["job_id"], str) and isinstance(event["generation"], int)
            is_whole = is_whole and bool(re.fullmatch(CELERY_NAME_PATTERN, task)) and is_queue_of_users(queue)
        except (ValueError, LookupError, TypeError, RecursionError):
            is_whole = False
        if not is_whole:
            raise ValueError("not an announcement")
        return cls(text, task, queue, event)

    @property
    def task_id(self) -> str:
        """The same ID for every repetition, and another one for each generation of each job."""
        return str(uuid.uuid5(_NAMESPACE, f"{self.event['job_id']}:{self.event['generation']}"))


@dataclass(frozen=True, slots=True)
class Sweep:
    """An output to be swept: killed workers may have left files in it."""

    job_id: str
    job_fingerprint: str
    job_created_ms: int  # with ID and fingerprint, this identifies a job among all earlier ones
    left: int  # sweeps that are left, including this one


class Errands:
    """The errands that are due. Calls raise `RedisUnavailableError` while Redis is unavailable."""

    def __init__(self, url: str) -> None:
        self._redis = connect(url)
        self._run = LuaScripts(self._redis, url, _SCRIPTS).run

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def claim_announcement(self, lease_seconds: float) -> Announcement | None:
        """Lease an announcement that is due; unless it is dropped within the lease, it is due again."""
        while answer := self._run("claim_announcement", int(lease_seconds * 1000)):
            (text,) = answer
            try:
                return Announcement.of_text(text)
            except ValueError as error:  # it must not block the others
                log.warning("%r: %s", text[:80], error, extra={"action": "announcement_dropped"})
                self._run("drop_errand", text)
        return None

    def claim_sweep(self, lease_seconds: float) -> Sweep | None:
        """Lease a sweep that is due; unless it is dropped within the lease, it is due again."""
        answer = self._run("claim_sweep", int(lease_seconds * 1000))
        if not answer:
            return None
        job_id, fingerprint, created_ms, left = answer
        return Sweep(job_id, fingerprint, int(created_ms), int(left))

    def drop(self, errand: Announcement | Sweep) -> None:
        """Remove an errand that is done. Idempotent."""
        if isinstance(errand, Announcement):
            self._run("drop_errand", errand.text)
        else:
            self._run("drop_errand", errand.job_id, errand.left)
