"""How a process that serves many at a time gets its memory. Imports neither Arrow nor modules of ours."""

from __future__ import annotations

import ctypes
import os

_M_ARENA_MAX, _LEAST_ARENAS = -8, 4  # the first is of <malloc.h>


def choose_allocator() -> None:
    """Make Arrow use malloc, with few arenas; must be called before Arrow is imported, and before threads.

    Arrow's default, mimalloc, keeps pages per thread and returns them soon. Parts are written by many
    threads, so the kernel would clear pages of 2 MiB all the time: half the time of a small image, see
    `python -m ops.bench.overhead`. malloc's own default, eight arenas per core, keeps what many threads have
    freed: a fifth of the memory of a worker, more the longer it runs, and of a gateway what the largest
    bodies took.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other systems than glibc have no arenas
    if mallopt is not None and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(_M_ARENA_MAX, max(_LEAST_ARENAS, len(os.sched_getaffinity(0))))
