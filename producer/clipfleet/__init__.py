"""clipfleet: hand over a pile of images, get one row per image back."""

from __future__ import annotations

from importlib.metadata import version

__version__ = version("clipfleet")
