"""How decoding and forward passes share the cores of a worker.

Each has a thread per core that the worker may use. The ring in front of the device is full most of the time,
so decode threads sleep during a forward pass; while it is not full, decoding is the bottleneck. `python -m
ops.bench.threads` compares this with other numbers. On two cores (OpenVINO in bf16, ViT-B-32, three rounds,
nothing else running, batches of 32), medians of ratios to this rule's rate: 1.00 with half as many decode
threads, 1.01 with twice as many; 0.94 with batches of 16, 1.10 of 64. In a whole worker batches of 64 are
1.06 to 1.2 times as fast as those of 32, and 96 and 128 slower again, with torch as with OpenVINO.
Alternating decoding and forward passes costs 4 to 15 %: hyper-threads run both at once faster than one after
the other. From four cores on, torch's threads form two groups, each with half the cores and a part of the
batch: 1.1 to 1.2 times as fast, see `backends.side_by_side`.

Small images are read and decoded by one thread at a time, see `decode.lock`: their C code is so short that
several threads spend most of their time passing the GIL. On two cores, with
images of 32 to 640 pixels and models of 8, 64 and 224 (`python -m ops.bench.turns`), they are 2.7 times
as fast in turns where an image takes 65 us, 1.4 times at 140 us, as fast at 200 us, and little more than
half as fast from 500 us on.

`CLIPFLEET_DECODE_THREADS` and `OMP_NUM_THREADS` override these numbers. torch is not imported before a model
is loaded.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

# Below this time to read and decode an image, in one thread, several threads slow each other down.
SMALL_IMAGE_SECONDS = 0.0002

_FORWARD = "OMP_NUM_THREADS"  # torch's variable; the parent of several processes sets it, too


def control_groups(controller: str, root: Path = Path("/")) -> Iterator[tuple[Path, bool]]:
    """Folders of the control groups of this process and of their parents.

    Args:
        controller: `memory` or `cpu`.
        root: of the file system.

    Yields:
        The folder, which may not exist, and whether it is of version 2.
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
    """Number of CPUs that this process can keep busy.

    A container often sees all CPUs of its machine but may use the time of a few. With a thread for each CPU
    that it sees, everything would be slow and seem to hang.
    """
    return max(1, math.ceil(min([len(os.sched_getaffinity(0)), *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    for folder, is_second in control_groups("cpu", root):
        with suppress(OSError, ValueError, ZeroDivisionError):  # it does not exist, or is "max"
            if is_second:
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota = (folder / "cpu.cfs_quota_us").read_text()
                period = (folder / "cpu.cfs_period_us").read_text()
            if int(quota) > 0:  # 0 or -1: no quota
                yield int(quota) / int(period)


def decode_threads(setting: int) -> int:
    """Number of decode threads: the setting, or one per core."""
    return setting or cpus()


def forward_threads(environment: Mapping[str, str], cores: int) -> int | None:
    """Number of threads of a forward pass on the CPU; None if the user has set it for torch."""
    return None if environment.get(_FORWARD, "").strip() else cores


def passes_side_by_side(threads: int) -> tuple[int, int]:
    """Number of concurrent forward passes of torch on the CPU, and of threads of each."""
    each = max(1, threads // 2)
    return threads // each, each


def set_forward_threads() -> None:
    """Set the threads of torch, and so of OpenVINO; precedes the load of a model.

    By default torch uses all cores that it sees: in a container far more than it may keep busy.
    """
    import torch

    threads = forward_threads(os.environ, cpus())
    if threads is not None and threads != torch.get_num_threads():
        torch.set_num_threads(threads)
