"""What happened in a run, as lines of JSON that are only ever appended: for the checker, and for people."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO


class History:
    """Open until `close`; any thread may note. A note is on its way to the disk when `note` returns."""

    def __init__(self, path: Path, began: float) -> None:
        """Begin a history.

        Args:
            path: the file; appended to.
            began: `time.monotonic()` at the start of the run, the zero of all times.
        """
        self.path = path
        self.began = began
        self._lock = threading.Lock()
        self._file: TextIO = path.open("a", encoding="utf-8")

    def now(self) -> float:
        """Seconds since the start of the run."""
        return time.monotonic() - self.began

    def note(self, what: str, **facts: object) -> float:
        """Add an event; returns its time in seconds since the start of the run."""
        with self._lock:
            at_seconds = self.now()
            line = json.dumps({"at_seconds": round(at_seconds, 4), "what": what, **facts})
            self._file.write(f"{line}\n")
            self._file.flush()
        return at_seconds

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_history(path: Path) -> Iterator[Mapping[str, Any]]:
    """The events of a history, in the order in which they were noted. A torn last line is left out."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)
