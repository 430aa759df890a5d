"""For whom a fetch tells that it waits because as many connections are open as may be.

The fetchers know what they wait for, the chunk whose item it is they do not: that stands in the context of
its tasks. Told once an item has waited, so that those which need not wait pay nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

NoteWait = Callable[[str, float], None]  # (what is waited for, in words; seconds)


def _nobody(_what: str, _seconds: float) -> None: ...


_note_wait: ContextVar[NoteWait] = ContextVar("note_wait", default=_nobody)


def tell_waits(note_wait: NoteWait) -> None:
    """Of this task, and of those it starts from now on."""
    _note_wait.set(note_wait)


@contextmanager
def waiting_for(what: str) -> Iterator[None]:
    """To be held while an item waits for its turn, also if it gives up."""
    started = time.monotonic()
    try:
        yield
    finally:
        _note_wait.get()(what[:200], time.monotonic() - started)
