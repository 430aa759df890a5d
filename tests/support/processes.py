"""Whether a process of a test still runs."""

from __future__ import annotations

from pathlib import Path


def is_gone(pid: int) -> bool:
    """Whether it has ended; a zombie counts."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"
