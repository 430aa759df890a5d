"""What the containers that this process is in may use, as Linux's control groups of both versions tell it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def control_groups(controller: str, root: Path = Path("/")) -> Iterator[tuple[Path, bool]]:
    """Folders of the groups of this process and of those above them that bound something.

    Args:
        controller: what they bound: `memory` or `cpu`.
        root: of the file system.

    Yields:
        The folder, which need not be there, and whether it is of version 2.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except FileNotFoundError:
        return
    mounted = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = mounted / controller if controllers else mounted
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            yield folder, not controllers
            if folder == top:
                break


def processors(root: Path = Path("/")) -> int:
    """How many this process can keep busy.

    A container often sees all those of its machine and may use the time of a few. Were there a thread for
    each that is seen, all would take long for the least thing, and seem to hang.
    """
    return max(1, math.ceil(min([len(os.sched_getaffinity(0)), *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    for folder, is_second in control_groups("cpu", root):
        with suppress(OSError, ValueError, ZeroDivisionError):  # not there, or "max"
            if is_second:
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota = (folder / "cpu.cfs_quota_us").read_text()
                period = (folder / "cpu.cfs_period_us").read_text()
            if int(quota) > 0:  # else there is none
                yield int(quota) / int(period)
