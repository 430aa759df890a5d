"""Counts and drops messages of the queue that are not hints, before they reach Celery or kombu.

Anyone who can write to the broker can push anything. A hint has a task name and nothing else. Other messages
could end the worker (an entry that is not JSON), stay in its memory (a time far in the future), or fill the
log.
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
_LOG_SECONDS = 60.0  # between two lines about the same problem
_TIMES = ("eta", "expires")
# Exceptions of Celery on headers and bodies that it does not expect.
_DATA_ERRORS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
_MESSAGE_ERRORS = (*_DATA_ERRORS, CeleryError, KombuError)

Handler = Callable[[Any], Any]


class HintGuard:
    """Filters messages before the handlers of one worker."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._refused: Counter[str] = Counter()
        self._last_logged: dict[str, float] = {}
        self._lock = threading.Lock()

    @property
    def refused(self) -> dict[str, int]:
        """Messages that were not hints since the process began, by problem."""
        with self._lock:
            return dict(self._refused)

    def note(self, problem: str) -> None:
        """Count a message, and log the problem unless that was done recently."""
        now = self._monotonic()
        with self._lock:
            self._refused[problem] += 1
            count = self._refused[problem]
            is_logged = now - self._last_logged.get(problem, -_LOG_SECONDS) < _LOG_SECONDS
            if not is_logged:
                self._last_logged[problem] = now
        if not is_logged:
            log.warning(
                "dropped %d messages of the queue %s that are not hints: %s",
                count, keys.QUEUE, problem, extra={"action": "hint_refused"},
            )  # fmt: skip

    def guarded(self, handler: Handler) -> Handler:
        """Wrap Celery's message handler so that it gets hints only; for any broker."""

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
        """Make kombu's Redis channel drop list entries that are not messages; ignore other channels."""
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
    """Why a kombu message is not a hint, from a small set of reasons; None if it is one."""
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
    """Whether a value is short and flat, such as an id, a count, or the time limits `[null, null]`."""
    if isinstance(value, list | tuple):
        return len(value) <= 2 and not any(value)
    if isinstance(value, str):
        return len(value) <= _MAX_HEADER_CHARACTERS
    return not value if isinstance(value, dict) else value is None or isinstance(value, bool | int | float)


def _says_nothing(body: Any) -> bool:
    """Whether a body is `[[], {}, {...}]`, without callbacks or chains."""
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
    """Whether kombu can build a message from it, keep it unacknowledged and return it to the queue."""
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
