"""Room for sockets and files: a process often may open a thousand, though the machine allows many more."""

from __future__ import annotations

import logging
import resource

log = logging.getLogger(__name__)

_WANTED = 65_536
_SOCKETS_PER_CONNECTION = 4  # in use, slow, kept for the next request, asking for a name
_FEW = 1024  # models, staged items, parts, pipes


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
