"""The extras `[analysis]` and `[fit]`: what the base install lacks."""

from __future__ import annotations

from importlib.util import find_spec

from clipfleet.errors import UsageError


def require_numpy(what: str) -> None:
    """Refuse to continue without numpy.

    Args:
        what: needs it, in the plural, as the message begins: `embeddings`, `marks`.

    Raises:
        UsageError: numpy is not installed.
    """
    if find_spec("numpy") is None:
        raise UsageError(f"{what} need numpy: pip install 'clipfleet[analysis]'")


def require_fit() -> None:
    """Refuse to continue without scikit-learn, which brings numpy and scipy.

    Raises:
        UsageError: it is not installed.
    """
    if find_spec("sklearn") is None:
        raise UsageError("heads are fitted by scikit-learn: pip install 'clipfleet[fit]'")
