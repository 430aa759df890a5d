"""CPU time and memory of a process, as the kernel counts them. Linux only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class CpuSeconds:
    """Time on CPUs."""

    user: float
    system: float

    @property
    def total(self) -> float:
        """Both."""
        return self.user + self.system

    def __sub__(self, earlier: Self) -> CpuSeconds:
        return CpuSeconds(self.user - earlier.user, self.system - earlier.system)


def cpu_seconds(pid: int) -> CpuSeconds:
    """Time of a process, its living descendants, and those that it has waited for."""
    user, system = 0, 0
    for one in (pid, *_descendants(pid)):
        with suppress(OSError):  # it has just ended: its parent's figures include it
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            user += int(fields[11]) + int(fields[13])
            system += int(fields[12]) + int(fields[14])
    return CpuSeconds(user / _TICKS_PER_SECOND, system / _TICKS_PER_SECOND)


def resident_bytes(pid: int) -> int:
    """RSS of one process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES


def peak_bytes(pid: int) -> int:
    """The largest RSS of one process since `forget_peak`."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def forget_peak(pid: int) -> None:
    """Begin `peak_bytes` anew, from the RSS of now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _descendants(pid: int) -> Iterator[int]:
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, tasks.read_text().split()):
                yield child
                yield from _descendants(child)
