"""One-time settings of Python and the system for a worker process.

Those of Python save time per image and change no result, see `python -m ops.bench.overhead`.
"""

from __future__ import annotations

import gc
import logging
import resource

log = logging.getLogger(__name__)

# With Python's default, 700, it would collect every few images, which make no cycles.
_NEW_OBJECTS_PER_COLLECTION = 20_000

_WANTED = 65_536
_SOCKETS_PER_CONNECTION = 4  # in use, slow, kept alive, looking up a name
_FEW = 1024  # models, staged items, parts, pipes


def calm_collector() -> None:
    """Make the garbage collector run less often; must be called between the imports and the first model."""
    gc.collect()
    gc.freeze()  # skips 200,000 objects of modules, which stay; a model may be unloaded
    gc.set_threshold(_NEW_OBJECTS_PER_COLLECTION)


def raise_open_files_limit(*, connections: int) -> None:
    """Raise the soft limit of open files; warn if the hard limit is too low.

    Args:
        connections: simultaneous ones; as many slow ones may be added.
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
    """Number of files that may be open at a time, see `raise_open_files_limit`."""
    return _SOCKETS_PER_CONNECTION * connections + _FEW
