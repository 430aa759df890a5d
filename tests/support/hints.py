"""Hints that tests count instead of sending them."""

from __future__ import annotations

from collections.abc import Callable

from clipfleet.hints import Hints


class CountedHints(Hints):
    """Needs no broker; something else may happen while a hint of work is published."""

    def __init__(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.work = self.finish = 0
        self._meanwhile = meanwhile

    def publish_work(self, count: int = 1) -> None:
        self.work += count
        self._meanwhile()

    def publish_finish(self) -> None:
        self.finish += 1
