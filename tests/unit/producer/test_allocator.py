"""How a process gets its memory."""

from __future__ import annotations

import os
import subprocess
import sys

ARENAS = """
import ctypes, threading
from clipfleet.allocator import choose_allocator

choose_allocator()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
threads = [threading.Thread(target=lambda: (libc.malloc(1000), barrier.wait())) for _ in range(40)]
barrier = threading.Barrier(40)
for one in threads:
    one.start()
for one in threads:
    one.join()
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


def test_threads_share_few_arenas_of_malloc() -> None:
    """So that memory which some have freed is used by the others."""
    clean = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}

    def arenas(environment: dict[str, str]) -> int:
        done = subprocess.run(
            [sys.executable, "-c", ARENAS],
            env=clean | environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.count("<heap nr=")

    assert arenas({}) == max(4, len(os.sched_getaffinity(0)))
    assert arenas({"MALLOC_ARENA_MAX": "1"}) == 1
