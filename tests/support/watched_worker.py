"""`clipfleet-worker run` that records what it opens: `python -m tests.support.watched_worker FILE`.

A line for each file that Python opens, and for each address that it connects to. What is opened below Python
(Parquet files, above all) is not recorded: `FileWatch` sees it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from clipfleet_worker.cli.commands import main as worker


def record_in(file: Path) -> None:
    """Record from now on, also in threads."""
    log = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            os.write(log, f"open {arguments[0]}\n".encode(errors="replace"))
        elif event == "socket.connect":
            os.write(log, f"connect {arguments[1]}\n".encode(errors="replace"))

    sys.addaudithook(note)


if __name__ == "__main__":
    record_in(Path(sys.argv.pop(1)))
    sys.argv[1:] = ["run"]
    worker()
