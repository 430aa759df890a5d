"""What jobs that fill a store ask of it while their chunks run; `finish/` commits them."""

from __future__ import annotations

from importlib.util import find_spec


def has_store_extra() -> bool:
    """Whether this process can read and write stores: it has the extra `[store]`."""
    return find_spec("lance") is not None
