"""Checks that the packages of an extra are installed, before the first of them is imported."""

from __future__ import annotations

from importlib.util import find_spec

from clipfleet.errors import UsageError

_MODULES = {
    "worker,embedded": ("torch", "torchvision", "open_clip", "PIL", "simplejpeg", "aiohttp", "numpy"),
    "worker": ("torch", "safetensors", "numpy"),  # what reads a file of torch
    "exporter": ("prometheus_client",),  # the extra `worker` has it, too
    "gateway": ("aiohttp", "prometheus_client"),  # so does it these
}


def require_extra(name: str = "worker,embedded") -> None:
    """Raise `UsageError` unless the packages of an extra are installed."""
    missing = [module for module in _MODULES[name] if find_spec(module) is None]
    if missing:
        raise UsageError(
            f"this command needs {', '.join(missing)}; run `pip install -e '.[{name}]'` in a clone"
        )
