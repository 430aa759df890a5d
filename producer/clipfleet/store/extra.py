"""The extra `[store]`: what the base install lacks."""

from __future__ import annotations

from importlib.util import find_spec

from clipfleet.errors import UsageError


def require_store() -> None:
    """Refuse to continue without Lance, which brings numpy.

    Raises:
        UsageError: it is not installed.
    """
    if find_spec("lance") is None:
        raise UsageError("stores need Lance: pip install 'clipfleet[store]'")
