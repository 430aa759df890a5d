"""What a worker asks of Python, Arrow and the system for its whole process, once.

What concerns Python and Arrow saves time per image, and changes no result: `python -m ops.bench.overhead`
shows it. Nothing of ours, and no Arrow, is imported here: the allocator is chosen before.
"""

from __future__ import annotations

import gc
import logging
import os
import resource

log = logging.getLogger(__name__)

# By Python's own number, 700, it would look for cycles every few images, which make none.
_NEW_OBJECTS_PER_COLLECTION = 20_000

_WANTED = 65_536
_SOCKETS_PER_CONNECTION = 4  # in use, slow, kept for the next request, asking for a name
_FEW = 1024  # models, staged items, parts, pipes


def choose_allocator() -> None:
    """Have Arrow take its memory from malloc; to be called before it is imported.

    mimalloc, its own choice, keeps pages for each thread and gives them back soon. Parts are written by many
    threads: the kernel clears pages of 2 MiB all the time then, for as long as half a small image takes.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


def calm_collector() -> None:
    """Have Python look for cycles less often; to be called with the modules loaded, and no model."""
    gc.collect()
    gc.freeze()  # modules stay: 200,000 objects that no collection needs to look at; a model may go
    gc.set_threshold(_NEW_OBJECTS_PER_COLLECTION)


def raise_open_files_limit(*, connections: int) -> None:
    """Raise the soft limit of this process as far as may be of use; warn where too few files may be open.

    Args:
        connections: simultaneous ones, without the slow ones, which may be as many again.
    """
    needed = files_needed(connections)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    possible = _WANTED if hard == resource.RLIM_INFINITY else min(hard, _WANTED)
    if soft != resource.RLIM_INFINITY and soft < possible:
        resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
        soft = possible
    if soft != resource.RLIM_INFINITY and soft < needed:
        log.warning(
            "%d files may be open: raise the limit (ulimit -n) to %d, or lower CLIPFLEET_TOTAL_CONNECTIONS",
            soft,
            needed,
            extra={"action": "few_open_files"},
        )


def files_needed(connections: int) -> int:
    """How many files may be wanted open at a time; see `raise_open_files_limit`."""
    return _SOCKETS_PER_CONNECTION * connections + _FEW
