"""What is on the queue and is no hint: counted and dropped before Celery, or kombu below it, trips over it.

Whoever can write to the broker can push anything. A hint says nothing but its task's name, so whatever says
more, or something else, is none. Celery itself would run into errors that end the worker (a list entry that
is no JSON), hold it in memory (a time far in the future), or fill the log.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from traceback import walk_tb
from typing import Any

import kombu.utils.json
from celery.exceptions import CeleryError
from kombu.exceptions import KombuError

from clipfleet.ledger import keys

log = logging.getLogger(__name__)

_TASKS = (keys.WORK_TASK, keys.FINISH_TASK)
_MAX_BODY_BYTES = 2_000
_MAX_HEADER_CHARACTERS = 1_000
_LOG_SECONDS = 60.0  # between two lines about the same kind
_TIMES = ("eta", "expires")
# What Celery makes of headers and bodies that it does not expect.
_DATA_ERRORS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
_MESSAGE_ERRORS = (*_DATA_ERRORS, CeleryError, KombuError)

Handler = Callable[[Any], Any]


class HintGuard:
    """Stands before the handlers of one worker's messages."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._refused: Counter[str] = Counter()
        self._last_told: dict[str, float] = {}
        self._lock = threading.Lock()

    @property
    def refused(self) -> dict[str, int]:
        """Messages that were no hints since the process began, by what was wrong with them."""
        with self._lock:
            return dict(self._refused)

    def note(self, problem: str) -> None:
        """Count one, and tell of it unless that was done lately."""
        now = self._monotonic()
        with self._lock:
            self._refused[problem] += 1
            count = self._refused[problem]
            is_told = now - self._last_told.get(problem, -_LOG_SECONDS) < _LOG_SECONDS
            if not is_told:
                self._last_told[problem] = now
        if not is_told:
            log.warning(
                "%d messages on the queue %s were no hints and were dropped: %s",
                count, keys.QUEUE, problem, extra={"action": "hint_refused"},
            )  # fmt: skip

    def guarded(self, handler: Handler) -> Handler:
        """Celery's handler of messages, for hints only; any broker."""

        def on_message(message: Any) -> Any:
            problem = problem_of(message)
            if problem is None:
                try:
                    return handler(message)
                except _MESSAGE_ERRORS as error:
                    problem = f"Celery cannot handle it ({type(error).__name__})"
            self.note(problem)
            if not message.acknowledged:
                message.reject()
            return None

        return on_message

    def guard_redis(self, channel: Any) -> None:
        """Have kombu's Redis channel drop list entries that are no messages; others stay as they are."""
        handlers = getattr(channel, "handlers", None)
        if not isinstance(handlers, dict) or "BRPOP" not in handlers:
            return
        handlers["BRPOP"] = partial(self._read, handlers["BRPOP"])
        transport = channel.connection
        transport._deliver = partial(self._deliver, transport._deliver)

    def _read(self, read: Callable[..., Any], **options: Any) -> Any:
        try:
            return read(**options)
        except _DATA_ERRORS as error:
            files = {frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__)}
            if kombu.utils.json.__file__ not in files:
                raise
        self.note("no JSON")
        return True

    def _deliver(self, deliver: Callable[[Any, Any], Any], raw: Any, queue: Any) -> Any:
        if _is_envelope(raw):
            return deliver(raw, queue)
        self.note("no message of Celery's")
        return None


def problem_of(message: Any) -> str | None:
    """What makes a kombu message no hint, in words that are few; None if it is one."""
    headers = message.headers
    if not isinstance(headers, Mapping) or headers.get("task") not in _TASKS:
        return "another task"
    identity = headers.get("id")
    if not isinstance(identity, str) or not identity or not identity.isprintable():
        return "no id"
    if any(headers.get(name) is not None for name in _TIMES):
        return "it has a time"
    if not all(_is_plain(value) for value in headers.values()):
        return "headers that no hint has"
    if message.content_type != "application/json" or message.content_encoding != "utf-8" or message.errors:
        return "no JSON in UTF-8"
    return None if _says_nothing(message.body) else "it has arguments"


def _is_plain(value: Any) -> bool:
    """Short, and nothing inside: such as an id, a count, the absent time limits `[null, null]`."""
    if isinstance(value, list | tuple):
        return len(value) <= 2 and not any(value)
    if isinstance(value, str):
        return len(value) <= _MAX_HEADER_CHARACTERS
    return not value if isinstance(value, dict) else value is None or isinstance(value, bool | int | float)


def _says_nothing(body: Any) -> bool:
    """Whether it is `[[], {}, {...}]` without anything that is to follow."""
    if not isinstance(body, bytes | str) or len(body) > _MAX_BODY_BYTES:
        return False
    try:
        values = json.loads(body if isinstance(body, str) else body.decode())
    except (ValueError, RecursionError):
        return False
    if not isinstance(values, list) or len(values) != 3:
        return False
    args, kwargs, embedded = values
    is_empty = isinstance(args, list) and isinstance(kwargs, dict) and not args and not kwargs
    return is_empty and isinstance(embedded, dict) and not any(embedded.values())


def _is_envelope(raw: Any) -> bool:
    """Whether kombu can make a message of it, keep it among the unacknowledged and give it back."""
    if not isinstance(raw, dict):
        return False
    headers, properties = raw.get("headers"), raw.get("properties")
    if not isinstance(headers, dict) or "compression" in headers or not isinstance(properties, dict):
        return False
    tag, where = properties.get("delivery_tag"), properties.get("delivery_info")
    if not isinstance(tag, str) or not tag or not isinstance(where, dict):
        return False
    is_routed = all(isinstance(where.get(name), str) for name in ("exchange", "routing_key"))
    has_priority = isinstance(properties.get("priority", 0), int)
    return is_routed and has_priority and _is_encoded(raw.get("body"), properties.get("body_encoding"))


def _is_encoded(body: Any, encoding: Any) -> bool:
    if encoding != "base64" or not isinstance(body, str) or len(body) > 2 * _MAX_BODY_BYTES:
        return False
    try:
        return bool(b64decode(body))
    except ValueError:
        return False
