"""How the cores of a worker are shared between decoding and the forward pass: the one place that says so.

Each has a thread per core that the worker may keep busy. The ring in front of the device is full most of the
time, so that decoding threads sleep while the forward runs, and where it is not full they are what is waited
for. `python -m ops.bench.threads` compares this with other numbers. On two cores (OpenVINO in bf16, ViT-B-32,
three rounds, nothing else running, batches of 32), medians of ratios to the rule's rate: 1.00 where half as
many decode and 1.01 where twice as many do; 0.94 with batches of 16 and 1.10 of 64. In a whole worker batches
of 64 are 1.06 to 1.2 times as fast as those of 32, and 96 and 128 slower again, with torch as with OpenVINO.
To have decoding and forward take turns, so that neither takes the other's cores, costs 4 to 15 %: cores that
share their parts do both at once better than one after the other. Torch's threads are groups, two of half the
cores each where they are four or more, which share the parts of a batch: 1.1 to 1.2 times as fast, see
`backends.side_by_side`.

Small images are read and decoded by one of those threads at a time, see `decode.lock`: their C code is
so short that the threads spend most of their time passing Python's lock to one another. On two cores, with
images of 32 to 640 pixels and models of 8, 64 and 224 (`python -m ops.bench.turns`), they are 2.7 times
as fast in turns where an image takes 65 us, 1.4 times at 140 us, as fast at 200 us, and little more than
half as fast from 500 us on.

`CLIPFLEET_DECODE_THREADS` and `OMP_NUM_THREADS` override them. torch is not imported here before a model is
loaded.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

# What an image takes, read and decoded by a thread alone, below which threads are in one another's way.
SMALL_IMAGE_SECONDS = 0.0002

_FORWARD = "OMP_NUM_THREADS"  # torch's own variable; the parent of several processes sets it, too


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


def cpus(root: Path = Path("/")) -> int:
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


def decode_threads(setting: int) -> int:
    """How many images are read at a time; the setting, 0 for one per core."""
    return setting or cpus()


def forward_threads(environment: Mapping[str, str], cores: int) -> int | None:
    """How many threads run a forward pass on the CPU; None where the user has told torch already."""
    return None if environment.get(_FORWARD, "").strip() else cores


def passes_side_by_side(threads: int) -> tuple[int, int]:
    """How many forward passes of torch's run at a time on the CPU, and how many threads each has."""
    each = max(1, threads // 2)
    return threads // each, each


def set_forward_threads() -> None:
    """Tell torch, and with it OpenVINO, before a model is loaded.

    torch by itself takes all cores that it sees: in a container far more than it may keep busy.
    """
    import torch

    threads = forward_threads(os.environ, cpus())
    if threads is not None and threads != torch.get_num_threads():
        torch.set_num_threads(threads)
