"""A ledger in memory whose calls are recorded, and whose answers a test may force."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from clipfleet.ledger.jobs import Ledger
from clipfleet.ledger.memory import MemoryLedger

_CALLS = {name for name in dir(Ledger) if not name.startswith("_")}


class RepliesLedger(MemoryLedger):
    """`replies` has forced answers by the name of the call: an exception is raised, a list is used up."""

    def __init__(self) -> None:
        super().__init__()
        self.replies: dict[str, Any] = {}
        self.before: dict[str, Callable[[], object]] = {}  # called first, by the name of the call
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return partial(self._reply, name, found) if name in _CALLS else found

    def _reply(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.calls.append((name, args, kwargs))
        self.before.get(name, lambda: None)()
        reply = self.replies.get(name)
        if isinstance(reply, list):
            reply = reply.pop(0) if reply else None
        if isinstance(reply, BaseException):
            raise reply.with_traceback(None)
        return call(*args, **kwargs) if reply is None else reply

    def keywords(self, name: str) -> list[dict[str, Any]]:
        """Keyword arguments of each call of this name."""
        return [kwargs for call, _, kwargs in self.calls if call == name]

    def named(self, name: str) -> list[tuple[Any, ...]]:
        """Positional arguments of each call of this name."""
        return [args for call, args, _ in self.calls if call == name]
