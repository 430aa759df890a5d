"""The stream of decisions, for consumer groups: each entry goes to one reader of a group, at least once."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import redis
from redis.exceptions import ResponseError

from clipfleet.contract.policies import DecisionStatus
from clipfleet.ledger import keys
from clipfleet.redis.connection import connect, redis_errors

log = logging.getLogger(__name__)

_MOST_ENTRIES = 500  # of one read
_BLOCK_SECONDS = 2.0
_IDLE_MS = 60_000  # after so long the entries of a reader that died go to another one
_KEPT_MS = 30 * 86400 * 1000  # as `KEEP_MS` of the scripts


@dataclass(frozen=True, slots=True)
class StreamedDecision:
    """One entry of the stream."""

    entry_id: str
    status: DecisionStatus
    policy: str  # name
    record: dict[str, Any]  # see `clipfleet.moderation.records.thin`


class DecisionStream:
    """Reads as one consumer of a group. Calls raise `RedisUnavailableError` while Redis is unavailable.

    An entry that is not acknowledged within a minute is read again, by any reader of the group.
    """

    def __init__(
        self, url: str, group: str, *, from_start: bool = False, on_gap: Callable[[], object] = lambda: None
    ) -> None:
        """Nothing is read yet.

        Args:
            url: of Redis.
            group: of readers that share the entries.
            from_start: whether a new group begins with the oldest entry, instead of the next one.
            on_gap: called when entries were removed before the group has read them.
        """
        self._url = url
        self._redis = connect(url, patience_seconds=_BLOCK_SECONDS + 10)
        self._group = group
        self._consumer = uuid.uuid4().hex[:12]
        self._from = "0" if from_start else "$"
        self._on_gap = on_gap
        self._has_begun = False

    def close(self) -> None:
        """Leave the group, unless entries are not acknowledged; close the connection."""
        with suppress(redis.RedisError):
            mine = ("-", "+", 1, self._consumer)
            pending: Any = self._redis.xpending_range(keys.DECISIONS, self._group, *mine)
            if not pending:
                self._redis.xgroup_delconsumer(keys.DECISIONS, self._group, self._consumer)
        self._redis.close()

    def read(self, *, wait: bool = True) -> Sequence[StreamedDecision]:
        """The next entries, or those of a reader that died; none if there are none within two seconds.

        Entries that are not decisions are acknowledged and left out.
        """
        with redis_errors(self._url):
            if not self._has_begun:
                self._begin()
            entries = self._entries(wait=wait)
        found = [(entry_id, _decision(entry_id, fields)) for entry_id, fields in entries]
        self._acknowledge([entry_id for entry_id, decision in found if decision is None])
        return [decision for _, decision in found if decision is not None]

    def acknowledge(self, decisions: Sequence[StreamedDecision]) -> None:
        """Record that these entries are handled. Idempotent."""
        self._acknowledge([one.entry_id for one in decisions])

    def _acknowledge(self, entry_ids: Sequence[str]) -> None:
        if entry_ids:
            with redis_errors(self._url):
                self._redis.xack(keys.DECISIONS, self._group, *entry_ids)

    def _begin(self) -> None:
        """Make the group, unless it is there."""
        try:
            self._redis.xgroup_create(keys.DECISIONS, self._group, self._from, mkstream=True)
            self._redis.pexpire(keys.DECISIONS, _KEPT_MS)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
            if self._has_gap():
                self._on_gap()
        self._has_begun = True

    def _has_gap(self) -> bool:
        """Whether the oldest entries that the group has not read are gone."""
        groups: Any = self._redis.xinfo_groups(keys.DECISIONS)
        (group,) = (one for one in groups if one["name"] == self._group)
        info: Any = self._redis.xinfo_stream(keys.DECISIONS)
        read = group.get("entries-read")  # None: the server does not know
        return read is not None and read < info["entries-added"] - info["length"]

    def _entries(self, *, wait: bool) -> list[tuple[str, dict[str, str]]]:
        try:
            return self._taken_over() or self._fresh(_BLOCK_SECONDS if wait else None)
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            self._from, self._has_begun = "0", False  # Redis has lost the stream: all in it is new
            return []

    def _taken_over(self) -> list[tuple[str, dict[str, str]]]:
        answer: Any = self._redis.xautoclaim(
            keys.DECISIONS, self._group, self._consumer, _IDLE_MS, "0-0", count=_MOST_ENTRIES
        )
        return [(entry_id, fields) for entry_id, fields in answer[1] if fields]

    def _fresh(self, seconds: float | None) -> list[tuple[str, dict[str, str]]]:
        block = None if seconds is None else int(seconds * 1000)
        answer: Any = self._redis.xreadgroup(
            self._group, self._consumer, {keys.DECISIONS: ">"}, _MOST_ENTRIES, block
        )
        streams = answer.items() if isinstance(answer, dict) else answer or ()
        return [entry for _, batches in streams for entry in _flat(batches)]


def _flat(entries: Sequence[Any]) -> Iterator[tuple[str, dict[str, str]]]:
    """Entries as pairs; RESP3 nests them in a list."""
    for entry in entries:
        if isinstance(entry, list) and entry and isinstance(entry[0], list | tuple):
            yield from _flat(entry)
        else:
            yield entry[0], entry[1]


def _decision(entry_id: str, fields: dict[str, str]) -> StreamedDecision | None:
    try:
        record = json.loads(fields["record"])
        if not isinstance(record, dict):
            raise ValueError("not an object")
        return StreamedDecision(entry_id, DecisionStatus(fields["status"]), fields.get("policy", ""), record)
    except (KeyError, ValueError, RecursionError) as error:  # planted
        log.warning("entry %s is no decision: %s", entry_id, error, extra={"action": "decision_dropped"})
        return None
