"""Ended jobs of which the user's own Celery task is to be told: noted by the ledger, sent by any worker."""

from __future__ import annotations

import json
import logging
import re
import uuid
from dataclasses import dataclass
from typing import Any, Self

import redis

from clipfleet.contract import CELERY_NAME_PATTERN, is_queue_of_users
from clipfleet.lua_scripts import LuaScripts
from clipfleet.redis_connection import connect

log = logging.getLogger(__name__)

_SCRIPTS = ("claim_announcement", "drop_announcement")
_NAMESPACE = uuid.UUID("8f2c1f5e-3c1e-4a57-9f0e-6b1f7f0f6a3d")


@dataclass(frozen=True, slots=True)
class Announcement:
    """The end of one generation of a job."""

    text: str  # as the ledger keeps it
    task: str  # name of the user's Celery task
    queue: str
    event: dict[str, Any]  # its only argument: job_id, generation, state, total, ok, failed, output, reason

    @classmethod
    def of_text(cls, text: str) -> Self:
        """From what the ledger keeps.

        Raises:
            ValueError: somebody else has put it there, and it is none.
        """
        try:
            value = json.loads(text)
            task, queue, event = value["task"], value["queue"], value["event"]
            is_whole = isinstance(event["job_id"], str) and isinstance(event["generation"], int)
            is_whole = is_whole and bool(re.fullmatch(CELERY_NAME_PATTERN, task)) and is_queue_of_users(queue)
        except (ValueError, LookupError, TypeError, RecursionError):
            is_whole = False
        if not is_whole:
            raise ValueError("this announces nothing")
        return cls(text, task, queue, event)

    @property
    def task_id(self) -> str:
        """The same for every repetition, and another one for each generation of each job."""
        return str(uuid.uuid5(_NAMESPACE, f"{self.event['job_id']}:{self.event['generation']}"))


class Announcements:
    """What is still to be sent. Calls raise `RedisUnavailableError` while Redis is away."""

    def __init__(self, url: str, *, client: redis.Redis | None = None) -> None:
        self._redis = client or connect(url)
        self._run = LuaScripts(self._redis, url, _SCRIPTS).run

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def claim(self, lease_seconds: float) -> Announcement | None:
        """One that is due; unless it is dropped within the lease, it is handed out again."""
        while text := self._run("claim_announcement", int(lease_seconds * 1000)):
            try:
                return Announcement.of_text(text)
            except ValueError as error:  # it must not keep the others from being sent
                log.warning("%r: %s", text[:80], error, extra={"action": "announcement_dropped"})
                self._run("drop_announcement", text)
        return None

    def drop(self, announcement: Announcement) -> None:
        """It was sent. Idempotent."""
        self._run("drop_announcement", announcement.text)
