"""What processes have cost: time of those that they have waited for counts, too."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys

from ops.bench.process_cost import cpu_seconds, forget_peak, peak_bytes, resident_bytes

BUSY = "import time\nwhile time.process_time() < 0.1: pass"


def test_children_count_while_they_live_and_after() -> None:
    before = cpu_seconds(os.getpid())
    child = subprocess.Popen(
        [sys.executable, "-c", f"{BUSY}\nprint('done', flush=True)\ninput()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        alive = (cpu_seconds(os.getpid()) - before).total
        child.communicate(b"\n")
    assert alive > 0.08
    assert (cpu_seconds(os.getpid()) - before).total > 0.08


def test_memory_of_this_process() -> None:
    assert resident_bytes(os.getpid()) > 1 << 20


def test_a_peak_stays_until_it_is_forgotten() -> None:
    pid = os.getpid()
    forget_peak(pid)
    low = peak_bytes(pid)

    # Mapped: the heap may keep what is freed.
    with mmap.mmap(-1, 64 << 20) as block:
        block.write(b"x" * len(block))
        high = peak_bytes(pid)
    assert high >= low + (48 << 20)
    assert peak_bytes(pid) >= high - (1 << 20)  # the kernel counts in steps

    forget_peak(pid)
    assert peak_bytes(pid) <= high - (32 << 20)
