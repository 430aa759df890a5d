"""The packages of the extra `[worker]`, asked for before the first of them is imported."""

from __future__ import annotations

from importlib.util import find_spec

from clipfleet.errors import UsageError

_WORKER_MODULES = ("torch", "torchvision", "open_clip", "PIL", "simplejpeg", "aiohttp", "numpy")


def require_worker_extra() -> None:
    """Raise `UsageError` unless the packages of the extra `[worker]` are installed."""
    missing = [name for name in _WORKER_MODULES if find_spec(name) is None]
    if missing:
        raise UsageError(
            f'this command needs {", ".join(missing)}: run `pip install "clipfleet[worker,embedded]"`'
        )


def require_exporter_extra() -> None:
    """Raise `UsageError` unless what the exporter needs is installed; the extra `[worker]` brings it, too."""
    if find_spec("prometheus_client") is None:
        raise UsageError('this command needs prometheus_client: run `pip install "clipfleet[exporter]"`')
