"""The process that ends a worker whose threads do not run: its id, and how often it has checked."""

from __future__ import annotations

from pathlib import Path


def watcher_of(worker_pid: int) -> int:
    """Its process id."""
    wanted = f"standstill_child.py\0{worker_pid}\0".encode()
    found = [
        int(folder.name) for folder in Path("/proc").glob("[0-9]*") if wanted in _read(folder / "cmdline")
    ]
    (pid,) = found
    return pid


class Looks:
    """How often a watcher has checked since this was made: it sleeps after each check."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._before = self._count()

    @property
    def since(self) -> int:
        return self._count() - self._before

    def _count(self) -> int:
        lines = self._status.read_text().splitlines()
        return int(next(line for line in lines if line.startswith("voluntary_ctxt_switches")).split()[1])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended meanwhile
        return b""
